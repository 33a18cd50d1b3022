"""Contrastive regularizers and their state: memory banks, prototypes and statistics."""

from udaseg.contrast.class_losses import bank_loss, distribution_loss
from udaseg.contrast.memory import EMPTY, MemoryBank
from udaseg.contrast.prototype_softmax import class_sums, prototype_loss
from udaseg.contrast.prototypes import ClassPrototypes, PrototypeContrast, PrototypeSums
from udaseg.contrast.regional import RegionalContrast
from udaseg.contrast.regional_softmax import regional_loss
from udaseg.contrast.semantic import SemanticContrast
from udaseg.contrast.statistics import ClassStatistics, class_moments
from udaseg.contrast.vectors import Projector, to_device, unit
from udaseg.contrast.views import CellView, Regularizer, View, Views

__all__ = [
    "EMPTY",
    "CellView",
    "ClassPrototypes",
    "ClassStatistics",
    "MemoryBank",
    "Projector",
    "PrototypeContrast",
    "PrototypeSums",
    "RegionalContrast",
    "Regularizer",
    "SemanticContrast",
    "View",
    "Views",
    "bank_loss",
    "class_moments",
    "class_sums",
    "distribution_loss",
    "prototype_loss",
    "regional_loss",
    "to_device",
    "unit",
]
