"""Evaluation: confusion matrices, protocols, and inference at full size."""

from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.inference import Model, labels_from_logits, predict_logits, windows
from udaseg.evaluation.protocols import CITYSCAPES, SUBSETS, mean_subsets
from udaseg.evaluation.sizes import network_size
from udaseg.evaluation.tiles import label_image

__all__ = [
    "CITYSCAPES",
    "SUBSETS",
    "ConfusionMatrix",
    "Model",
    "label_image",
    "labels_from_logits",
    "mean_subsets",
    "network_size",
    "predict_logits",
    "windows",
]
