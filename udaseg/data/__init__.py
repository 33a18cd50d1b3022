"""Read datasets: label meanings, image files, and training batches.

Names that need torch are imported on first use, so `prepare` runs without torch.
"""

from typing import TYPE_CHECKING, Any

from udaseg.data.balanced import balanced_order
from udaseg.data.cache import Cache, CacheFormat, cache_folder, open_cache
from udaseg.data.cache_speed import speed_up
from udaseg.data.cache_write import CacheReport, write_cache
from udaseg.data.catalog_list import builtin, builtin_names
from udaseg.data.convert import train_ids
from udaseg.data.crops import Crops, Sampling
from udaseg.data.declaration import Declaration, read_declaration
from udaseg.data.doctor import Examination, Finding, SetFacts, examine
from udaseg.data.find import find
from udaseg.data.images import (
    IMAGE_SUFFIXES,
    image_size,
    read_image,
    read_label_ids,
    read_train_ids,
    write_atomic,
    write_png,
)
from udaseg.data.index import PreparedDataset, Sample, evenly_spaced, read_index
from udaseg.data.label_table import LabelTable, class_table
from udaseg.data.labels import IGNORE, ClassSpace, lookup_table
from udaseg.data.open import folder_of_images, make_toyland, open_dataset
from udaseg.data.prepare import prepare_dataset
from udaseg.data.prepare_report import PrepareReport
from udaseg.data.pseudo_labels import (
    pseudo_label_path,
    pseudo_labels_digest,
    write_pseudo_label,
)
from udaseg.data.rare import RareClasses, class_chances
from udaseg.data.transforms import resize_image, resize_labels
from udaseg.data.verify import VerifyReport, verify_dataset
from udaseg.data.video import VIDEO_SUFFIXES, VideoReader, VideoWriter

if TYPE_CHECKING:
    from udaseg.data.batch import Batch, TrainingBatches
    from udaseg.data.loader import batches_from

_WITH_TORCH = ("Batch", "TrainingBatches", "batches_from")

__all__ = [
    "IGNORE",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Batch",
    "Cache",
    "CacheFormat",
    "CacheReport",
    "ClassSpace",
    "Crops",
    "Declaration",
    "Examination",
    "Finding",
    "LabelTable",
    "PrepareReport",
    "PreparedDataset",
    "RareClasses",
    "Sample",
    "Sampling",
    "SetFacts",
    "TrainingBatches",
    "VerifyReport",
    "VideoReader",
    "VideoWriter",
    "balanced_order",
    "batches_from",
    "builtin",
    "builtin_names",
    "cache_folder",
    "class_chances",
    "class_table",
    "evenly_spaced",
    "examine",
    "find",
    "folder_of_images",
    "image_size",
    "lookup_table",
    "make_toyland",
    "open_cache",
    "open_dataset",
    "prepare_dataset",
    "pseudo_label_path",
    "pseudo_labels_digest",
    "read_declaration",
    "read_image",
    "read_index",
    "read_label_ids",
    "read_train_ids",
    "resize_image",
    "resize_labels",
    "speed_up",
    "train_ids",
    "verify_dataset",
    "write_atomic",
    "write_cache",
    "write_png",
    "write_pseudo_label",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        from udaseg.data import batch, loader

        return getattr(loader if name == "batches_from" else batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
