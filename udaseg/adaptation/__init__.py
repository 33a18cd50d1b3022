"""Adaptation: the teacher, mixing, pixel losses, and the objectives made of them."""

from udaseg.adaptation.mixing import class_mask, gaussian_blur, paste, square_mask, strong_augment
from udaseg.adaptation.objective import LossReport, Objective, SelfTraining, SourceOnly, Strong
from udaseg.adaptation.pixels import pixel_loss, pseudo_labels
from udaseg.adaptation.teacher import Teacher

__all__ = [
    "LossReport",
    "Objective",
    "SelfTraining",
    "SourceOnly",
    "Strong",
    "Teacher",
    "class_mask",
    "gaussian_blur",
    "paste",
    "pixel_loss",
    "pseudo_labels",
    "square_mask",
    "strong_augment",
]
