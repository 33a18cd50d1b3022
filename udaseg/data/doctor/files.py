"""One image with its label: can both be read, do they fit, and what do they hold."""

import errno
import io
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data.convert import train_ids
from udaseg.data.doctor.alike import fingerprint
from udaseg.data.doctor.subject import Item, Subject
from udaseg.data.headers import (
    MAX_PIXELS,
    png_form,
    read_size,
    refuse_damaged,
)
from udaseg.data.images import read_image, read_label_ids, read_train_ids
from udaseg.data.label_table import LabelTable
from udaseg.data.labels import IGNORE, ClassSpace
from udaseg.data.manifest import content
from udaseg.errors import DataError

_ORIENTATION = 0x0112
_SMALL = 32
_IDS_SHOWN = 3
_FEW = 2  # classes of which an image often has but one
_FLAT = 1.0
"""A spread of every channel below this is one colour."""
_KINDS = {
    b"\x89PNG": (".png",),
    b"\xff\xd8\xff": (".jpg", ".jpeg"),
    b"BM": (".bmp",),
    b"II*\0": (".tif", ".tiff"),
    b"MM\0*": (".tif", ".tiff"),
    b"GIF8": (".gif",),
}
_HEAD = 64  # bytes that tell an image's type and a PNG's form


@dataclass
class Looked:
    """What one image and its label turned out to be.

    Attributes:
        item: Which.
        found: Code, file and note of each fault.
        size: (height, width) of the image; None when it cannot be read.
        mean: (3,) mean of its channels, RGB.
        spread: (3,) standard deviation of its channels.
        flat: It has one colour.
        mark: Bits that say how it looks.
        digest: SHA-256 of the image file.
        pixels: (K,) pixels of each class in the label; None when it cannot be read.
        ignored: Pixels of the label without a class.
        unknown: Pixels of each id that means nothing.
    """

    item: Item
    found: list[tuple[str, Path, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    mean: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    flat: bool = False
    mark: bytes = b""
    digest: str = ""
    pixels: NDArray[np.int64] | None = None
    ignored: int = 0
    unknown: Mapping[int, int] = field(default_factory=dict)


def look(item: Item, subject: Subject) -> Looked:
    """Read an image and its label whole, and return all that is wrong with them."""
    looked = Looked(item)
    _look_at_image(looked)
    if item.label is not None:
        _look_at_label(looked, item.label, subject)
    return looked


def fault_of(path: Path) -> tuple[str, str] | None:
    """Return code and note of what keeps a file from being read as an image; None if nothing.

    What only a decoder finds is not looked for.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            return "broken-link", "in a circle" if error.errno == errno.ELOOP else ""
        if isinstance(error, FileNotFoundError):
            return "missing-file", ""
        return "unreadable", error.strerror or ""
    if not stat.S_ISREG(mode):
        return "not-a-file", "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if not head:
                return "empty-file", ""
            file.seek(0)
            read_size(path, file)
        refuse_damaged(path, content(path, path.parent)[0])
    except OSError as error:
        return "unreadable", error.strerror or ""
    except DataError as error:
        note = _without_path(error, path)
        if f"{MAX_PIXELS:,}" in note or "too large" in note:
            return "too-large", note
        if _suffixes(head):
            return "damaged", note.removeprefix("damaged: ")
        return "not-an-image", "" if note.startswith("is no image") else note
    return None


def _look_at_image(looked: Looked) -> None:
    path = looked.item.image
    try:
        data, seen = content(path, path.parent)
        image = read_image(path, data=data)
    except DataError as error:
        code, note = fault_of(path) or ("damaged", _without_path(error, path))
        looked.found.append((code, path, note))
        return
    height, width = image.shape[:2]
    looked.size = (height, width)
    both = np.asarray(cv2.meanStdDev(image), np.float64)
    looked.mean, looked.spread = both[0].ravel(), both[1].ravel()
    looked.flat = bool(looked.spread.max() < _FLAT)
    looked.mark = fingerprint(image)
    looked.digest = seen.sha256
    if looked.flat:
        color = ", ".join(str(round(part)) for part in looked.mean)
        looked.found.append(("blank-image", path, f"RGB {color}"))
    if min(looked.size) < _SMALL:
        looked.found.append(("small-image", path, f"{width}x{height}"))
    looked.found += [(code, path, note) for code, note in _form(path, data)]
    recorded = looked.item.recorded
    if recorded is not None and (recorded.height, recorded.width) != looked.size:
        was = f"{width}x{height}, prepared as {recorded.width}x{recorded.height}"
        looked.found.append(("stale-index", path, was))
    elif looked.item.image_sha256 not in (None, seen.sha256):
        looked.found.append(("stale-index", path, "changed since it was prepared"))


def _form(path: Path, data: bytes) -> list[tuple[str, str]]:
    """Return what is unusual in how a sound image is stored: its turn, its type, its channels."""
    found = _suffix_fault(path, data)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mode = opened.mode
            # asking a PNG for EXIF decodes it, so the bytes are asked first
            marked = b"Exif" in data or b"eXIf" in data or ".tif" in _suffixes(data)
            turn = opened.getexif().get(_ORIENTATION, 1) if marked else 1
    except (OSError, ValueError, SyntaxError):  # what OpenCV reads is no fault for its form
        return found
    if turn not in (0, 1):
        found.append(("exif-orientation", f"orientation {turn}"))
    form = png_form(data[:_HEAD])
    if form.startswith("16-bit"):
        found.append(("image-form", form))
    elif mode not in ("RGB", "P"):
        found.append(("image-form", {"L": "grey", "1": "black and white"}.get(mode, mode)))
    return found


def _suffix_fault(path: Path, data: bytes) -> list[tuple[str, str]]:
    suffixes = _suffixes(data)
    if suffixes and path.suffix.lower() not in suffixes:
        return [("wrong-suffix", f"is a {suffixes[0][1:].upper()}")]
    return []


def _suffixes(data: bytes) -> tuple[str, ...]:
    """Return the suffixes that the content goes by; none where it is of no known type."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return (".webp",)
    return next((names for start, names in _KINDS.items() if data.startswith(start)), ())


def _look_at_label(looked: Looked, path: Path, subject: Subject) -> None:
    try:
        data, seen = content(path, path.parent)
        labels, unknown = _train_ids(path, data, subject)
    except DataError as error:
        note = _without_path(error, path)
        undecoded = ("damaged", note) if "cannot be decoded" in note else ("label-form", note)
        code, note = fault_of(path) or undecoded
        looked.found.append((code, path, note))
        return
    assert subject.classes is not None
    looked.unknown = unknown
    if unknown:
        more = ", ..." if len(unknown) > _IDS_SHOWN else ""
        shown = ", ".join(id_name(number, subject) for number in list(unknown)[:_IDS_SHOWN])
        looked.found.append(("unknown-id", path, f"id {shown}{more}"))
    looked.found += [(code, path, note) for code, note in _suffix_fault(path, data)]
    if looked.size is not None and labels.shape != looked.size:
        looked.found.append(("size-mismatch", path, _sizes(labels.shape, looked.size)))
    if looked.item.label_sha256 not in (None, seen.sha256):
        looked.found.append(("stale-index", path, "changed since it was prepared"))
    _count(looked, path, labels, subject.classes)


def _count(looked: Looked, path: Path, labels: NDArray[np.uint8], classes: ClassSpace) -> None:
    """Count the pixels of each class, and note what is odd about them."""
    counts = np.bincount(labels.ravel(), minlength=256)
    looked.pixels = counts[: len(classes)].astype(np.int64)
    looked.ignored = int(counts[IGNORE]) - sum(looked.unknown.values())
    present = np.flatnonzero(looked.pixels)
    if not present.size and not looked.unknown:
        looked.found.append(("no-class", path, "every pixel is ignored"))
    elif present.size == 1 and not looked.unknown and len(classes) > _FEW:
        looked.found.append(("one-class", path, f"all {classes.names[int(present[0])]}"))
    recorded, digest = looked.item.recorded, looked.item.label_sha256
    if recorded is not None and digest is None and recorded.pixels != tuple(looked.pixels.tolist()):
        looked.found.append(("stale-index", path, "holds other classes than when prepared"))


def _train_ids(
    path: Path, data: bytes, subject: Subject
) -> tuple[NDArray[np.uint8], Mapping[int, int]]:
    """Return the train ids of a label, `IGNORE` where unknown, and pixels of each unknown id."""
    if subject.declaration is not None:
        assert subject.declaration.table is not None
        ids = read_label_ids(path, subject.declaration.label_format, data=data)
        return train_ids(ids, subject.declaration.table)
    assert subject.classes is not None
    refuse_damaged(path, data)
    return train_ids(read_train_ids(path), _of_train_ids(subject.classes))


@lru_cache(maxsize=4)
def _of_train_ids(classes: ClassSpace) -> LabelTable:
    """Return the table of a prepared label: each class is its own id."""
    ids = tuple((number,) for number in range(len(classes)))
    return LabelTable(classes, ids, frozenset({IGNORE}))


def id_name(number: int, subject: Subject) -> str:
    """Return an id as the YAML writes it: a number, or a colour."""
    declaration = subject.declaration
    if declaration is None or declaration.label_format != "rgb":
        return str(number)
    return str([number >> 16, number >> 8 & 255, number & 255])


def _sizes(label: Any, image: tuple[int, int]) -> str:
    turned = ", turned" if tuple(label) == image[::-1] else ""
    return f"label {label[1]}x{label[0]}, image {image[1]}x{image[0]}{turned}"


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
