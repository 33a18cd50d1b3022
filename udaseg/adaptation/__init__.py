"""Domain adaptation: the mean teacher, mixing, pixel losses, and the training objectives."""

from udaseg.adaptation.adversarial import Adversarial
from udaseg.adaptation.alignment import PrototypeAlignment, SelfDistillation
from udaseg.adaptation.augmentation import color_jitter, gaussian_blur, strong_augment
from udaseg.adaptation.entropy import EntropyMinimization, fourier_style, normalised_entropy
from udaseg.adaptation.mixing import class_mask, paste, square_mask
from udaseg.adaptation.objective import Jitter, LossReport, Objective, SourceOnly
from udaseg.adaptation.passes import prototype_pass, pseudo_label_pass, threshold_pass
from udaseg.adaptation.pixels import pixel_loss, pseudo_labels
from udaseg.adaptation.rank_norms import norms_over_ranks
from udaseg.adaptation.self_labels import ConfidenceHistograms, kept_labels
from udaseg.adaptation.self_training import SelfTraining, Strong
from udaseg.adaptation.target_statistics import adapt_statistics
from udaseg.adaptation.teacher import Teacher

__all__ = [
    "Adversarial",
    "ConfidenceHistograms",
    "EntropyMinimization",
    "Jitter",
    "LossReport",
    "Objective",
    "PrototypeAlignment",
    "SelfDistillation",
    "SelfTraining",
    "SourceOnly",
    "Strong",
    "Teacher",
    "adapt_statistics",
    "class_mask",
    "color_jitter",
    "fourier_style",
    "gaussian_blur",
    "kept_labels",
    "normalised_entropy",
    "norms_over_ranks",
    "paste",
    "pixel_loss",
    "prototype_pass",
    "pseudo_label_pass",
    "pseudo_labels",
    "square_mask",
    "strong_augment",
    "threshold_pass",
]
