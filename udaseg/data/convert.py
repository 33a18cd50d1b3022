"""One pair at a time: read the image and its label, check both, write the label as train ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.declaration import Declaration
from udaseg.data.images import read_image, read_label_ids, write_png
from udaseg.data.index import Sample
from udaseg.data.label_table import LabelTable
from udaseg.data.labels import IGNORE
from udaseg.data.pairs import Pair
from udaseg.errors import DataError

Mismatch = Literal["exclude", "resize", "fail"]

# a class space has at most 254 classes, so this train id is never one of them
_UNKNOWN = 254
_COARSE = 16


@dataclass(frozen=True)
class Checked:
    """One pair after reading: a sample, or why there is none.

    Attributes:
        sample: What goes into the index.
        bad: Why a file cannot be used.
        excluded: Why a rule leaves the pair out.
        blank: The image has one colour only; it is kept.
        unknown: Pixels of each id that the table does not know.
    """

    sample: Sample | None = None
    bad: str | None = None
    excluded: str | None = None
    blank: bool = False
    unknown: Mapping[int, int] = field(default_factory=dict)


def convert(
    pair: Pair,
    split: str,
    declaration: Declaration,
    folder: Path,
    into: Path | None,
    on_mismatch: Mismatch,
) -> Checked:
    """Read and check a pair; write its label below `into`, unless that is None."""
    name = pair.image.relative_to(folder).as_posix()
    try:
        image = read_image(pair.image)
        height, width = image.shape[:2]
        blank = _is_blank(image)
        if pair.label is None:
            return Checked(Sample(name, None, height, width), blank=blank)
        ids = read_label_ids(pair.label, declaration.label_format)
    except DataError as error:
        return Checked(bad=str(error))
    assert declaration.table is not None
    labels, unknown = train_ids(ids, declaration.table)
    if labels.shape != (height, width):
        what = f"{pair.label}: label {labels.shape[1]}x{labels.shape[0]}, image {width}x{height}"
        if on_mismatch == "fail":
            return Checked(bad=what, unknown=unknown)
        if on_mismatch == "exclude":
            return Checked(excluded=what, unknown=unknown)
        labels = np.asarray(
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
    target = f"labels/{split}/{pair.key}.png"
    if into is not None:
        write_png(into / target, labels)
    counts = np.bincount(labels.ravel(), minlength=256)[: len(declaration.table.classes)]
    sample = Sample(name, target, height, width, tuple(counts.tolist()))
    return Checked(sample, blank=blank, unknown=unknown)


def train_ids(ids: NDArray[Any], table: LabelTable) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Return raw ids as train ids, and how often each id occurs that the table does not know.

    Args:
        ids: (H, W) of any integer type.
        table: What they mean.

    Returns:
        (H, W) uint8, `IGNORE` where an id is unknown, and the pixels of each unknown id.
    """
    if ids.dtype == np.uint8:
        labels = np.asarray(cv2.LUT(ids, _lookup(table, 2**8)), np.uint8)
    elif ids.dtype == np.uint16:
        labels = _lookup(table, 2**16)[ids]
    else:
        inside = (ids >= 0) & (ids < 2**24)
        labels = np.where(inside, _lookup(table, 2**24)[np.where(inside, ids, 0)], _UNKNOWN)
        labels = labels.astype(np.uint8)
    strange = labels == _UNKNOWN
    if not strange.any():
        return labels, {}
    values, counts = np.unique(ids[strange], return_counts=True)
    labels[strange] = IGNORE
    return labels, dict(zip(values.tolist(), counts.tolist(), strict=True))


@lru_cache(maxsize=4)
def _lookup(table: LabelTable, size: int) -> NDArray[np.uint8]:
    """Return the train id of each id below `size`."""
    lookup = np.full(size, _UNKNOWN, np.uint8)
    for number in table.ignore:
        if number < size:
            lookup[number] = IGNORE
    for train_id, own in enumerate(table.ids):
        for number in own:
            if number < size:
                lookup[number] = train_id
    lookup.flags.writeable = False
    return lookup


def _is_blank(image: NDArray[np.uint8]) -> bool:
    """Return whether all pixels have one colour; a coarse look settles most images."""
    coarse = image[::_COARSE, ::_COARSE]
    return bool((coarse == image[0, 0]).all()) and bool((image == image[0, 0]).all())
