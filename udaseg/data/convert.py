"""Read and check an image with its label, and write the label as train ids."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from udaseg.data.manifest import Fingerprint, Row, content, sha256
from udaseg.data.pairs import Pair
from udaseg.errors import DataError

Mismatch = Literal["exclude", "resize", "fail"]

# a class space has at most 254 classes, so this train id is never one of them
_UNKNOWN = 254
_COARSE = 16


@dataclass(frozen=True)
class Checked:
    """Result of reading one pair.

    Attributes:
        row: Entry for the manifest, and for the index unless a rule excludes the pair.
        bad: Why a file cannot be used.
        unknown: Number of pixels of each id that the table does not list.
        kept: Whether the result of an earlier run was reused.
    """

    row: Row | None = None
    bad: str | None = None
    unknown: Mapping[int, int] = field(default_factory=dict)
    kept: bool = False


def convert(
    pair: Pair,
    split: str,
    declaration: Declaration,
    folder: Path,
    into: Path | None,
    on_mismatch: Mismatch,
) -> Checked:
    """Read and check a pair; write its label below `into` unless that is None."""
    try:
        data, image_stamp = content(pair.image, folder)
        image = read_image(pair.image, data=data)
        height, width = image.shape[:2]
        row = Row(split, pair.key, image_stamp, None, None, None, blank=_is_blank(image))
        if pair.label is None:
            return Checked(replace(row, sample=Sample(image_stamp.path, None, height, width)))
        data, label_stamp = content(pair.label, folder)
        ids = read_label_ids(pair.label, declaration.label_format, data=data)
    except DataError as error:
        return Checked(bad=str(error))
    assert declaration.table is not None
    labels, unknown = train_ids(ids, declaration.table)
    row = replace(row, label=label_stamp)
    if labels.shape != (height, width):
        problem = f"{pair.label}: label {labels.shape[1]}x{labels.shape[0]}, image {width}x{height}"
        if on_mismatch == "fail":
            return Checked(bad=problem, unknown=unknown)
        if on_mismatch == "exclude":
            return Checked(replace(row, excluded=problem, blank=False), unknown=unknown)
        labels = np.asarray(
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
    name = f"labels/{split}/{pair.key}.png"
    counts = np.bincount(labels.ravel(), minlength=256)[: len(declaration.table.classes)]
    sample = Sample(image_stamp.path, name, height, width, tuple(counts.tolist()))
    prepared = None if into is None else _written(into, name, labels, label_stamp.mtime_ns)
    return Checked(replace(row, prepared=prepared, sample=sample), unknown=unknown)


def _written(into: Path, name: str, labels: NDArray[np.uint8], mtime_ns: int) -> Fingerprint:
    """Write a label with the modification time of its source file, so every run gives the same."""
    path = into / name
    write_png(path, labels)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    info = path.stat()  # file systems round times, so read them back
    return Fingerprint(name, info.st_size, info.st_mtime_ns, sha256(path.read_bytes()))


def train_ids(ids: NDArray[Any], table: LabelTable) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Convert raw ids to train ids, and count the pixels of each id that the table does not list.

    Args:
        ids: (H, W) of any integer type.
        table: Meaning of the ids.

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
    is_unknown = labels == _UNKNOWN
    if not is_unknown.any():
        return labels, {}
    values, counts = np.unique(ids[is_unknown], return_counts=True)
    labels[is_unknown] = IGNORE
    return labels, dict(zip(values.tolist(), counts.tolist(), strict=True))


@lru_cache(maxsize=4)
def _lookup(table: LabelTable, size: int) -> NDArray[np.uint8]:
    """Return an array that maps each id below `size` to its train id."""
    lookup = np.full(size, _UNKNOWN, np.uint8)
    for label_id in table.ignore:
        if label_id < size:
            lookup[label_id] = IGNORE
    for train_id, ids in enumerate(table.ids):
        for label_id in ids:
            if label_id < size:
                lookup[label_id] = train_id
    lookup.flags.writeable = False
    return lookup


def _is_blank(image: NDArray[np.uint8]) -> bool:
    """Return whether all pixels have one colour; a coarse grid decides for most images."""
    coarse = image[::_COARSE, ::_COARSE]
    return bool((coarse == image[0, 0]).all()) and bool((image == image[0, 0]).all())
