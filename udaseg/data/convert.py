"""One pair at a time: read the image and its label, check both, write the label as train ids."""

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
    """One pair after reading, or why it cannot be used.

    Attributes:
        row: What goes into the manifest, and into the index unless a rule leaves the pair out.
        bad: Why a file cannot be used.
        unknown: Pixels of each id that the table does not know.
        kept: It was read by an earlier run; nothing was done now.
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
    """Read and check a pair; write its label below `into`, unless that is None."""
    try:
        data, seen = content(pair.image, folder)
        image = read_image(pair.image, data=data)
        height, width = image.shape[:2]
        row = Row(split, pair.key, seen, None, None, None, blank=_is_blank(image))
        if pair.label is None:
            return Checked(replace(row, sample=Sample(seen.path, None, height, width)))
        data, label_seen = content(pair.label, folder)
        ids = read_label_ids(pair.label, declaration.label_format, data=data)
    except DataError as error:
        return Checked(bad=str(error))
    assert declaration.table is not None
    labels, unknown = train_ids(ids, declaration.table)
    row = replace(row, label=label_seen)
    if labels.shape != (height, width):
        what = f"{pair.label}: label {labels.shape[1]}x{labels.shape[0]}, image {width}x{height}"
        if on_mismatch == "fail":
            return Checked(bad=what, unknown=unknown)
        if on_mismatch == "exclude":
            return Checked(replace(row, excluded=what, blank=False), unknown=unknown)
        labels = np.asarray(
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
    name = f"labels/{split}/{pair.key}.png"
    counts = np.bincount(labels.ravel(), minlength=256)[: len(declaration.table.classes)]
    sample = Sample(seen.path, name, height, width, tuple(counts.tolist()))
    prepared = None if into is None else _written(into, name, labels, label_seen.mtime_ns)
    return Checked(replace(row, prepared=prepared, sample=sample), unknown=unknown)


def _written(into: Path, name: str, labels: NDArray[np.uint8], mtime_ns: int) -> Fingerprint:
    """Write a label, as old as the file that it is made from: the same in every run."""
    path = into / name
    write_png(path, labels)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    found = path.stat()  # file systems round times
    return Fingerprint(name, found.st_size, found.st_mtime_ns, sha256(path.read_bytes()))


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
