"""Adaptation: the teacher, mixing, pixel losses, and the objectives made of them."""

from udaseg.adaptation.adversarial import Adversarial
from udaseg.adaptation.alignment import PrototypeAlignment, SelfDistillation
from udaseg.adaptation.entropy import EntropyMinimization, fourier_style, normalised_entropy
from udaseg.adaptation.mixing import class_mask, gaussian_blur, paste, square_mask, strong_augment
from udaseg.adaptation.objective import LossReport, Objective, SelfTraining, SourceOnly, Strong
from udaseg.adaptation.passes import prototype_pass, pseudo_label_pass, threshold_pass
from udaseg.adaptation.pixels import pixel_loss, pseudo_labels
from udaseg.adaptation.self_labels import ConfidenceHistograms, kept_labels
from udaseg.adaptation.teacher import Teacher

__all__ = [
    "Adversarial",
    "ConfidenceHistograms",
    "EntropyMinimization",
    "LossReport",
    "Objective",
    "PrototypeAlignment",
    "SelfDistillation",
    "SelfTraining",
    "SourceOnly",
    "Strong",
    "Teacher",
    "class_mask",
    "fourier_style",
    "gaussian_blur",
    "kept_labels",
    "normalised_entropy",
    "paste",
    "pixel_loss",
    "prototype_pass",
    "pseudo_label_pass",
    "pseudo_labels",
    "square_mask",
    "strong_augment",
    "threshold_pass",
]
