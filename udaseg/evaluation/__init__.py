"""Evaluation: confusion matrices, protocols, and inference at full size."""

from udaseg.evaluation.calibration import BINS, Calibration
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.inference import Model, labels_from_logits, predict_logits, windows
from udaseg.evaluation.protocols import (
    CITYSCAPES,
    NOT_IN_16,
    SUBSETS,
    Scored,
    conventions,
    mean_subsets,
    scored_under,
    strangers,
)
from udaseg.evaluation.selection import (
    CRITERIA,
    Criterion,
    agreement,
    information,
    joint_counts,
    mean_entropy,
    mean_ranks,
    neighbourhood_density,
    prior_drift,
    ranks,
    sample_pixels,
)
from udaseg.evaluation.sizes import network_size
from udaseg.evaluation.tiles import label_image

__all__ = [
    "BINS",
    "CITYSCAPES",
    "CRITERIA",
    "NOT_IN_16",
    "SUBSETS",
    "Calibration",
    "ConfusionMatrix",
    "Criterion",
    "Model",
    "Scored",
    "agreement",
    "conventions",
    "information",
    "joint_counts",
    "label_image",
    "labels_from_logits",
    "mean_entropy",
    "mean_ranks",
    "mean_subsets",
    "neighbourhood_density",
    "network_size",
    "predict_logits",
    "prior_drift",
    "ranks",
    "sample_pixels",
    "scored_under",
    "strangers",
    "windows",
]
