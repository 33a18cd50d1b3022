"""Contrastive regularizers and what they remember."""

from udaseg.contrast.memory import EMPTY, MemoryBank
from udaseg.contrast.regional import RegionalContrast, regional_loss
from udaseg.contrast.vectors import Projector, unit
from udaseg.contrast.views import CellView, Regularizer, View, Views

__all__ = [
    "EMPTY",
    "CellView",
    "MemoryBank",
    "Projector",
    "RegionalContrast",
    "Regularizer",
    "View",
    "Views",
    "regional_loss",
    "unit",
]
