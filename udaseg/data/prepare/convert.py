"""Read and check an image with its label, and write the label as train ids."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import Sample
from udaseg.data.datasets.pairs import DatasetFiles, Pair
from udaseg.data.files.bit_depth import FULL_BITS, largest_value
from udaseg.data.files.headers import read_header
from udaseg.data.files.images import read_values, refuse_more_bits, write_png
from udaseg.data.files.orientation import Size, orientation_of, turned_size
from udaseg.data.files.parallel import map_in_threads
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.formats import BUILT_IN, format_package, object_format
from udaseg.data.labels.objects.drawing import NamedLabels
from udaseg.data.labels.objects.shared import read_shared
from udaseg.data.labels.read import read_label_ids
from udaseg.data.labels.tables import LabelId, LabelTable
from udaseg.data.labels.turned import upright_label
from udaseg.data.prepare.manifest import Fingerprint, Row, read_with_fingerprint
from udaseg.data.prepare.report import ReadResult, unknown_ids_message
from udaseg.data.prepare.rules import Mismatch, PrepareOptions
from udaseg.data.prepare.workspace import Workspace
from udaseg.errors import DataError, EnvironmentFault
from udaseg.files import disk_space, sha256
from udaseg.text import format_size

# a class space has at most 254 classes, so this train id is never one of them
_UNKNOWN = 254
_COARSE_STRIDE = 16
_MAX_LOOKUP = 2**24  # colours are below it


@dataclass(frozen=True)
class ConvertedPair:
    """Result of reading one pair.

    Attributes:
        row: Entry for the manifest; None if a file cannot be used.
        problem: Why a file cannot be used.
        unknown_ids: Number of pixels of each id that the table does not list.
        reused: Whether the result of an earlier run was reused.
        either_way: EXIF orientation of an image whose label is ambiguous; else 0.
    """

    row: Row | None = None
    problem: str | None = None
    unknown_ids: Mapping[LabelId, int] = field(default_factory=dict)
    reused: bool = False
    either_way: int = 0


def convert_pair(
    pair: Pair,
    split: str,
    declaration: Declaration,
    folder: Path,
    into: Path | None,
    on_mismatch: Mismatch,
) -> ConvertedPair:
    """Read and check a pair; write its label below `into` unless that is None."""
    try:
        data, image_stamp = read_with_fingerprint(pair.image, folder)
        image = read_values(pair.image, data=data, bands=declaration.bands)
        orientation, header = orientation_of(data), io.BytesIO(data)
        height, width = turned_size((image.shape[0], image.shape[1]), orientation)
        loss = read_header(pair.image, header, bands=declaration.bands).loss
        peak = largest_value(image)
        if peak is not None:
            refuse_more_bits(pair.image, peak, declaration.bits or FULL_BITS)
        row = Row(
            split, pair.key, image_stamp, blank=_is_blank(image), peak=peak, loss=loss or None
        )
        sample = Sample(image_stamp.path, None, height, width, orientation=orientation)
        if pair.label is None:
            return ConvertedPair(replace(row, sample=sample))
        source = LabelSource(pair.label, pair.entry, folder)
        label, label_stamp = read_label(source, declaration, (height, width), orientation)
    except DataError as error:
        return ConvertedPair(problem=str(error))
    labels, unknown = label.train_ids, label.unknown_ids
    row = replace(row, label=label_stamp)
    if labels.shape != (height, width):
        problem = f"{pair.label}: label {format_size(labels.shape)}, image {width}x{height}"
        if orientation != 1:
            problem += f", both turned upright (EXIF orientation {orientation})"
        if on_mismatch == "fail":
            return ConvertedPair(problem=problem, unknown_ids=unknown)
        if on_mismatch == "exclude":
            return ConvertedPair(replace(row, excluded=problem, blank=False), unknown_ids=unknown)
        labels = np.asarray(
            cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
    if label.either_way:
        return ConvertedPair(either_way=orientation, unknown_ids=unknown)
    assert declaration.table is not None
    name = f"labels/{split}/{pair.key}.png"
    counts = np.bincount(labels.ravel(), minlength=256)[: len(declaration.table.classes)]
    sample = replace(sample, label=name, class_pixels=tuple(counts.tolist()))
    prepared = None if into is None else _write_label(into, name, labels, label_stamp.mtime_ns)
    return ConvertedPair(replace(row, prepared=prepared, sample=sample), unknown_ids=unknown)


class LabelSource(NamedTuple):
    """Where the label of an image is: a file below `folder`, and its entry there; see `Pair`."""

    path: Path
    entry: int | None
    folder: Path


class ReadLabel(NamedTuple):
    """A label, turned upright with its image.

    Attributes:
        train_ids: (H, W), `IGNORE` for unknown ids.
        unknown_ids: Pixels of each id, or named label, that the table does not list.
        either_way: Whether the orientation is unknown; the label is not turned then.
    """

    train_ids: NDArray[np.uint8]
    unknown_ids: Mapping[LabelId, int]
    either_way: bool


def read_label(
    source: LabelSource, declaration: Declaration, image: Size, orientation: int
) -> tuple[ReadLabel, Fingerprint]:
    """Return the label of an image of an upright size (height, width), and that of its file."""
    path, table, objects = source.path, declaration.table, object_format(declaration.label_format)
    assert table is not None
    unknown: dict[LabelId, int] = {}
    if objects is None:
        data, stamp = read_with_fingerprint(path, source.folder)
        ids = read_label_ids(path, declaration.label_format, data=data)
        labels, unknown_ids = to_train_ids(ids, table)
        unknown.update(unknown_ids.items())
        if orientation_of(data) != 1:  # it was turned by its own orientation, so it is upright
            return ReadLabel(labels, unknown, either_way=False), stamp
    else:
        if source.entry is not None:
            shared = read_shared(path, objects.read)
            name = path.relative_to(source.folder).as_posix()
            stamp = Fingerprint(name, shared.size, shared.mtime_ns, shared.sha256)
            labelled = shared.images[source.entry]
        else:
            data, stamp = read_with_fingerprint(path, source.folder)
            (labelled,) = objects.read(path, data)
        labels, unknown_labels = labels_to_train_ids(labelled.draw(labelled.size or image), table)
        unknown.update(unknown_labels.items())
    upright = upright_label(labels, image, orientation, declaration.label_orientation)
    either_way = upright is None
    return ReadLabel(labels if upright is None else upright, unknown, either_way), stamp


def _write_label(into: Path, name: str, labels: NDArray[np.uint8], mtime_ns: int) -> Fingerprint:
    """Write a label with the modification time of its source, so that every run gives the same."""
    path = into / name
    write_png(path, labels)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    info = path.stat()  # file systems round times, so read them back
    return Fingerprint(name, info.st_size, info.st_mtime_ns, sha256(path.read_bytes()))


def to_train_ids(ids: NDArray[Any], table: LabelTable) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Return (H, W) train ids, `IGNORE` for unknown ids, and the pixels of each unknown id."""
    if ids.dtype == np.uint8:
        labels = np.asarray(cv2.LUT(ids, _lookup_array(table, 2**8)), np.uint8)
    elif ids.dtype == np.uint16:
        labels = _lookup_array(table, 2**16)[ids]
    else:
        inside = (ids >= 0) & (ids < _MAX_LOOKUP)
        lookup = _lookup_array(table, _MAX_LOOKUP)
        labels = np.where(inside, lookup[np.where(inside, ids, 0)], _UNKNOWN).astype(np.uint8)
        for train_id, number in _ids_of(table):
            if not 0 <= number < _MAX_LOOKUP:
                labels[ids == number] = train_id
    is_unknown = labels == _UNKNOWN
    if not is_unknown.any():
        return labels, {}
    values, counts = np.unique(ids[is_unknown], return_counts=True)
    labels[is_unknown] = IGNORE
    return labels, dict(zip(values.tolist(), counts.tolist(), strict=True))


def labels_to_train_ids(
    drawn: NamedLabels, table: LabelTable
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Return (H, W) train ids, `IGNORE` for unknown labels, and the pixels of each of those."""
    train_ids = {label: index for index, labels in enumerate(table.labels) for label in labels}
    train_ids |= dict.fromkeys(table.ignored_labels, IGNORE)
    lookup = np.array([train_ids.get(name, IGNORE) for name in drawn.names], np.uint8)
    pixels = drawn.pixels().items()
    unknown = {name: count for name, count in pixels if count and name not in train_ids}
    return lookup[drawn.positions], unknown


@lru_cache(maxsize=4)
def _lookup_array(table: LabelTable, size: int) -> NDArray[np.uint8]:
    """Return an array that maps each id below `size` to its train id."""
    lookup = np.full(size, _UNKNOWN, np.uint8)
    for train_id, number in _ids_of(table):
        if 0 <= number < size:
            lookup[number] = train_id
    lookup.flags.writeable = False
    return lookup


def _ids_of(table: LabelTable) -> Iterator[tuple[int, int]]:
    """Yield the train id and the id of each id that a table lists."""
    for train_id, ids in ((IGNORE, table.ignore), *enumerate(table.ids)):
        for number in ids:
            yield train_id, number


def _is_blank(image: NDArray[Any]) -> bool:
    """Return whether all pixels have one colour; a coarse grid decides for most images."""
    coarse = image[::_COARSE_STRIDE, ::_COARSE_STRIDE]
    return bool((coarse == image[0, 0]).all()) and bool((image == image[0, 0]).all())


def read_all(
    declaration: Declaration,
    pairs: DatasetFiles,
    folder: Path,
    workspace: Workspace | None,
    options: PrepareOptions,
    on_progress: Callable[[int, int], None] | None,
) -> ReadResult:
    """Read every pair and write its label into `workspace`, unless that is None."""
    _require_label_package(declaration)
    jobs = [(pair, split) for split, members in pairs.splits.items() for pair in members]
    result = ReadResult(bad=list(map(str, pairs.unpaired)))
    unknown: Counter[LabelId] = Counter()
    first_unknown: dict[LabelId, Path] = {}
    label_folder = None if workspace is None else workspace.temporary_folder

    def read(job: tuple[Pair, str]) -> ConvertedPair:
        row = None if workspace is None else workspace.reusable_row(*job)
        if row is not None:
            return ConvertedPair(row, reused=True)
        return convert_pair(*job, declaration, folder, label_folder, options.on_mismatch)

    def estimate_remaining_bytes() -> int:
        sizes = [row.prepared.size for row in result.rows if row.prepared is not None]
        labels = [pair.label for pair, _ in jobs[len(result.rows) :] if pair.label is not None]
        if sizes:
            return len(labels) * sum(sizes) // len(sizes)
        return sum(path.stat().st_size for path in labels if path.is_file())

    with disk_space(label_folder or folder, estimate_remaining_bytes):
        for (pair, _), converted in map_in_threads(read, jobs, options.workers, on_progress):
            result.read += not converted.reused
            if converted.problem is not None:
                result.bad.append(converted.problem)
            if converted.either_way:
                result.either_way.append(f"{pair.image}: EXIF orientation {converted.either_way}")
            if converted.row is not None:
                result.rows.append(converted.row)
            for label_id in converted.unknown_ids:
                first_unknown.setdefault(label_id, pair.label or pair.image)
            unknown.update(converted.unknown_ids)
            is_new = not (converted.reused or converted.unknown_ids)
            if workspace is not None and converted.row is not None and is_new:
                workspace.add_to_journal(converted.row)
    if unknown:
        raise DataError(unknown_ids_message(declaration, unknown, first_unknown))
    return result


def _require_label_package(declaration: Declaration) -> None:
    label_format = declaration.label_format
    if declaration.table is None or label_format in BUILT_IN or format_package(label_format):
        return
    assert declaration.label_package is not None  # the declaration was accepted because of it
    raise EnvironmentFault(
        f"{declaration.path}: package {declaration.label_package.name} reads label_format "
        f"{label_format}, but is not installed; install it, or use the labels as they were "
        f"prepared by the name '{declaration.name}'"
    )
