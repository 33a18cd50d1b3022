"""Data: what labels mean, where images are, and the batches that training sees.

Everything that makes tensors is imported when first asked for, so that `prepare` needs no torch.
"""

from typing import TYPE_CHECKING, Any

from udaseg.data.index import PreparedDataset, Sample, read_index
from udaseg.data.labels import IGNORE, ClassSpace

if TYPE_CHECKING:
    from udaseg.data.batch import Batch, Crops, TrainingBatches, batches_from

_WITH_TORCH = ("Batch", "Crops", "TrainingBatches", "batches_from")

__all__ = [
    "IGNORE",
    "Batch",
    "ClassSpace",
    "Crops",
    "PreparedDataset",
    "Sample",
    "TrainingBatches",
    "batches_from",
    "read_index",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        from udaseg.data import batch

        return getattr(batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
