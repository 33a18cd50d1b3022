"""Check one image with its label: whether both can be read and match, and what they contain."""

import errno
import io
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data.doctor.subject import Subject, SubjectImage
from udaseg.data.files import headers
from udaseg.data.files.bit_depth import bits_of_values, largest_value
from udaseg.data.files.images import read_values, to_uint8
from udaseg.data.files.orientation import orientation_of, to_upright
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.formats import object_format
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import LabelId
from udaseg.data.prepare.convert import LabelSource, ReadLabel, read_label
from udaseg.data.prepare.manifest import Fingerprint, read_with_fingerprint
from udaseg.errors import DataError
from udaseg.text import format_size

_GRID = 16
_MIN_SIDE = 32
_IDS_SHOWN = 3
_FEW_CLASSES = 2  # with this few classes, an image often has only one

_BLANK_SPREAD = 1.0
"""An image whose channels all have a spread below this has a single colour."""

_SUFFIXES_BY_SIGNATURE = {
    b"\x89PNG": (".png",),
    b"\xff\xd8\xff": (".jpg", ".jpeg"),
    b"BM": (".bmp",),
    b"II*\0": (".tif", ".tiff"),
    b"MM\0*": (".tif", ".tiff"),
    b"GIF8": (".gif",),
}
_HEADER_BYTES = 64  # bytes that suffice to detect an image's type and a PNG's form


@dataclass
class InspectedImage:
    """The result of checking one image and its label.

    Attributes:
        faults: Code, file and note of each fault.
        size: (height, width) of the upright image; None if it cannot be read.
        orientation: EXIF orientation of the image file, 1 to 8.
        mean: (3,) mean of the channels, RGB.
        spread: (3,) standard deviation of the channels.
        digest: SHA-256 of the image file.
        peak: The largest value of a 16-bit image; None for others.
        pixels: (K,) pixels of each class in the label; None if it cannot be read.
        ignored: Pixels of the label without a class.
        unknown_ids: Pixels of each id that the label table does not define.
    """

    subject: Subject
    item: SubjectImage
    faults: list[tuple[str, Path, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    orientation: int = 1
    mean: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    is_blank: bool = False
    hash_bits: bytes = b""
    digest: str = ""
    peak: int | None = None
    pixels: NDArray[np.int64] | None = None
    ignored: int = 0
    unknown_ids: Mapping[LabelId, int] = field(default_factory=dict)


def inspect_image(item: SubjectImage, subject: Subject) -> InspectedImage:
    """Read an image and its label completely, and return all faults and statistics."""
    result = InspectedImage(subject, item)
    result.faults += [(code, item.image, note) for code, note in _image_faults(result)]
    if (label := item.label) is not None:
        result.faults += [(code, label, note) for code, note in _label_faults(result, label)]
    return result


def fingerprint(image: NDArray[np.uint8]) -> bytes:
    """Return 256 bits that describe an image: where brightness increases from left to right.

    Another size, compression or brightness changes few of them.

    Args:
        image: (H, W, 3) RGB.

    Reference:
        The difference hash of Neal Krawetz ("Kind of Like That", 2013). Differs: 16x16 instead of
        8x8 bits, so that frames of one street differ.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_GRID + 1, _GRID), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def file_fault(path: Path) -> tuple[str, str] | None:
    """Return code and note of the fault that keeps a file from being read as an image, or None.

    Faults that only a decoder finds are not detected.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            return "broken-link", "circular link" if error.errno == errno.ELOOP else ""
        if isinstance(error, FileNotFoundError):
            return "missing-file", ""
        return "unreadable", error.strerror or ""
    if not stat.S_ISREG(mode):
        return "not-a-file", "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            if not head:
                return "empty-file", ""
            file.seek(0)
            headers.read_header(path, file)
        headers.refuse_damaged_image(path, read_with_fingerprint(path, path.parent)[0])
    except OSError as error:
        return "unreadable", error.strerror or ""
    except DataError as error:
        note = _without_path(error, path)
        if f"{headers.MAX_PIXELS:,}" in note or "too large" in note:
            return "too-large", note
        if _suffixes(head):
            return "damaged", note.removeprefix("damaged: ")
        return "not-an-image", "" if note.startswith("is not a readable image") else note
    return None


def _image_faults(result: InspectedImage) -> Iterator[tuple[str, str]]:
    """Yield code and note of each fault of the image; add its statistics to the result."""
    item, path = result.item, result.item.image
    try:
        data, stamp = read_with_fingerprint(path, path.parent)
        values = read_values(path, data=data, bands=result.subject.bands)
        result.orientation = orientation_of(data)
    except DataError as error:
        yield file_fault(path) or ("damaged", _without_path(error, path))
        return
    result.peak = peak = largest_value(values)
    bits = result.subject.bits
    if peak is not None and (not bits or peak >= 2**bits):
        if bits:
            yield "above-bits", f"values up to {peak}, read as {bits} bits"
        bits = bits_of_values([peak])
    image = to_upright(to_uint8(path, values, bits), result.orientation)
    result.size = image.shape[:2]
    statistics = np.asarray(cv2.meanStdDev(image), np.float64)
    result.mean, result.spread = statistics[0].ravel(), statistics[1].ravel()
    result.is_blank = bool(result.spread.max() < _BLANK_SPREAD)
    result.hash_bits, result.digest = fingerprint(image), stamp.sha256
    if result.is_blank:
        yield "blank-image", f"RGB {', '.join(str(round(part)) for part in result.mean)}"
    if min(result.size) < _MIN_SIDE:
        yield "small-image", format_size(result.size)
    yield from _format_faults(path, data)
    if result.orientation != 1:
        yield "exif-orientation", f"orientation {result.orientation}"
    recorded = item.index_entry
    if recorded is not None and (recorded.height, recorded.width) != result.size:
        before = f"{recorded.width}x{recorded.height}"
        yield "stale-index", f"{format_size(result.size)}, prepared as {before}"
    elif recorded is not None and recorded.orientation != result.orientation:
        yield "stale-index", f"was prepared with EXIF orientation {recorded.orientation}"
    elif item.image_sha256 not in (None, stamp.sha256):
        yield "stale-index", "changed since it was prepared"


def _format_faults(path: Path, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield what is unusual in how a readable image is stored: type, channels."""
    yield from _suffix_fault(path, data)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mode = opened.mode
    except (OSError, ValueError, SyntaxError):  # OpenCV can read it, so its form is not a fault
        return
    if loss := headers.read_header(path, io.BytesIO(data)).loss:
        yield "read-in-part", loss
    form = headers.png_pixel_format(data[:_HEADER_BYTES])
    if form.startswith("16-bit"):
        yield "image-form", form
    elif mode not in ("RGB", "P"):
        yield "image-form", {"L": "grey", "1": "black and white"}.get(mode, mode)


def _suffix_fault(path: Path, data: bytes) -> Iterator[tuple[str, str]]:
    suffixes = _suffixes(data)
    if suffixes and path.suffix.lower() not in suffixes:
        yield "wrong-suffix", f"is a {suffixes[0][1:].upper()}"


def _suffixes(data: bytes) -> tuple[str, ...]:
    """Return the suffixes that match the content; empty if its type is unknown."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return (".webp",)
    return next(
        (names for start, names in _SUFFIXES_BY_SIGNATURE.items() if data.startswith(start)), ()
    )


def _label_faults(result: InspectedImage, path: Path) -> Iterator[tuple[str, str]]:
    """Yield code and note of each fault of the label; add its statistics to the result."""
    subject, item = result.subject, result.item
    try:
        (labels, unknown, either_way), stamp = _read_label(path, result)
    except DataError as error:
        note = _without_path(error, path)
        code = "damaged" if "cannot be decoded" in note else "label-form"
        yield _unreadable_label_fault(path, subject) or (code, note)
        return
    result.unknown_ids = unknown
    if unknown:
        more = ", ..." if len(unknown) > _IDS_SHOWN else ""
        shown = ", ".join(subject.id_name(number) for number in list(unknown)[:_IDS_SHOWN])
        yield "unknown-id", f"id {shown}{more}"
    if not _need_not_be_an_image(subject):
        yield from _suffix_fault(path, _start_of(path))
    if result.size is not None and labels.shape != result.size:
        rotated = ", rotated" if labels.shape == result.size[::-1] else ""
        sizes = f"label {format_size(labels.shape)}, image {format_size(result.size)}{rotated}"
        yield "size-mismatch", sizes
    elif either_way:
        yield "turned-label", f"EXIF orientation {result.orientation}"
    if item.label_sha256 not in (None, stamp.sha256):
        yield "stale-index", "changed since it was prepared"
    assert subject.classes is not None
    counts = np.bincount(labels.ravel(), minlength=256)
    result.pixels = counts[: len(subject.classes)].astype(np.int64)
    result.ignored = int(counts[IGNORE]) - sum(unknown.values())
    present = np.flatnonzero(result.pixels)
    if not present.size and not unknown:
        yield "no-class", "every pixel is ignored"
    elif present.size == 1 and not unknown and len(subject.classes) > _FEW_CLASSES:
        yield "one-class", f"all {subject.classes.names[int(present[0])]}"
    if item.index_entry is not None and item.label_sha256 is None:
        recorded_pixels = item.index_entry.class_pixels
        if recorded_pixels != tuple(result.pixels.tolist()):
            yield "stale-index", "has other classes than when it was prepared"


def _unreadable_label_fault(path: Path, subject: Subject) -> tuple[str, str] | None:
    """Return code and note of the fault that keeps a label file from being read, or None."""
    fault = file_fault(path)
    is_about_images = fault is not None and fault[0] in ("not-an-image", "damaged", "too-large")
    return None if is_about_images and _need_not_be_an_image(subject) else fault


def _need_not_be_an_image(subject: Subject) -> bool:
    declaration = subject.declaration
    return declaration is not None and (
        declaration.label_package is not None or object_format(declaration.label_format) is not None
    )


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _read_label(path: Path, result: InspectedImage) -> tuple[ReadLabel, Fingerprint]:
    """Return a label in its original form or, of a prepared data set, as train ids."""
    subject = result.subject
    if subject.declaration is not None:
        size = result.size or (0, 0)  # of an image that cannot be read, which has no orientation
        source = LabelSource(path, result.item.entry, path.parent)
        return read_label(source, subject.declaration, size, result.orientation)
    data, stamp = read_with_fingerprint(path, path.parent)
    assert subject.classes is not None
    headers.refuse_damaged_image(path, data)
    labels = read_train_ids(path)
    is_unknown = (labels >= len(subject.classes)) & (labels != IGNORE)
    values, counts = np.unique(labels[is_unknown], return_counts=True)
    labels[is_unknown] = IGNORE
    unknown: dict[LabelId, int] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return ReadLabel(labels, unknown, either_way=False), stamp


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
