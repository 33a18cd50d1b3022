"""The contrastive regularizers, their settings and memories, for training in your own loop.

    from udaseg.contrast import Projector, Regional, RegionalContrast

A regularizer receives the `Views` of a step: `forward` returns its weighted loss, `update` changes
its memory after the optimizer step. The pure functions are in `udaseg.losses`.
"""

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_reduce_sum, mean_divisor
from udaseg.losses import bank_loss, distribution_loss, prototype_loss, regional_loss
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.class_statistics import ClassStatistics
from udaseg.methods.contrast.feature_distance import FrozenDistance
from udaseg.methods.contrast.memory_bank import MemoryBank
from udaseg.methods.contrast.prototypes import ClassPrototypes, PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regularizer import PerViewRegularizer, Regularizer
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.views import (
    AUGMENTED,
    CUTMIX,
    MIXED,
    PSEUDO_LABELLED,
    SOURCE,
    TARGET,
    TARGET_BY_STUDENT_HEAD,
    TEACHER_SOURCE,
    CellView,
    Need,
    View,
    Views,
    cell_view,
    flatten_cells,
    labels_on_cells,
)
from udaseg.recipe.contrast import FeatureDistance, Projector, Prototypes, Regional, Semantic

__all__ = [
    "AUGMENTED",
    "CUTMIX",
    "IGNORE",
    "MIXED",
    "PSEUDO_LABELLED",
    "SOURCE",
    "TARGET",
    "TARGET_BY_STUDENT_HEAD",
    "TEACHER_SOURCE",
    "AnchorContrast",
    "CellView",
    "ClassPrototypes",
    "ClassStatistics",
    "FeatureDistance",
    "FrozenDistance",
    "MemoryBank",
    "Need",
    "PerViewRegularizer",
    "Projector",
    "PrototypeContrast",
    "Prototypes",
    "Regional",
    "RegionalContrast",
    "Regularizer",
    "Semantic",
    "SemanticContrast",
    "View",
    "Views",
    "all_reduce_sum",
    "bank_loss",
    "cell_view",
    "distribution_loss",
    "flatten_cells",
    "labels_on_cells",
    "mean_divisor",
    "prototype_loss",
    "regional_loss",
]
