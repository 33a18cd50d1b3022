"""Contrastive regularizers and what they remember."""

from udaseg.contrast.memory import EMPTY, MemoryBank
from udaseg.contrast.prototypes import (
    ClassPrototypes,
    PrototypeContrast,
    PrototypeSums,
    class_sums,
    prototype_loss,
)
from udaseg.contrast.regional import RegionalContrast, regional_loss
from udaseg.contrast.vectors import Projector, unit
from udaseg.contrast.views import CellView, Regularizer, View, Views

__all__ = [
    "EMPTY",
    "CellView",
    "ClassPrototypes",
    "MemoryBank",
    "Projector",
    "PrototypeContrast",
    "PrototypeSums",
    "RegionalContrast",
    "Regularizer",
    "View",
    "Views",
    "class_sums",
    "prototype_loss",
    "regional_loss",
    "unit",
]
