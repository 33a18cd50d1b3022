"""Evaluate networks: confusion matrices, protocols, and inference at full resolution."""

from udaseg.evaluation.calibration import BINS, Calibration
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.inference import (
    Model,
    labels_from_logits,
    predict_batch,
    predict_logits,
    windows,
)
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
    rank_correlation,
    ranks,
    sample_pixels,
)
from udaseg.evaluation.sizes import WHOLE_PX, network_size, whole_size
from udaseg.evaluation.temperature import (
    COLDEST,
    HOTTEST,
    Trust,
    fit_temperature,
    logits_at,
    trust,
)
from udaseg.evaluation.tiles import label_image
from udaseg.evaluation.together import Said, in_halves, label_images, seen_in_tiles

__all__ = [
    "BINS",
    "CITYSCAPES",
    "COLDEST",
    "CRITERIA",
    "HOTTEST",
    "NOT_IN_16",
    "SUBSETS",
    "WHOLE_PX",
    "Calibration",
    "ConfusionMatrix",
    "Criterion",
    "Model",
    "Said",
    "Scored",
    "Trust",
    "agreement",
    "conventions",
    "fit_temperature",
    "in_halves",
    "information",
    "joint_counts",
    "label_image",
    "label_images",
    "labels_from_logits",
    "logits_at",
    "mean_entropy",
    "mean_ranks",
    "mean_subsets",
    "neighbourhood_density",
    "network_size",
    "predict_batch",
    "predict_logits",
    "prior_drift",
    "rank_correlation",
    "ranks",
    "sample_pixels",
    "scored_under",
    "seen_in_tiles",
    "strangers",
    "trust",
    "whole_size",
    "windows",
]
