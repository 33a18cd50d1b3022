"""The EXIF orientation of image files, and pixels turned upright and back."""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files import jpeg, tiff
from udaseg.data.files.headers import PNG_SIGNATURE, is_boxed, open_picture

Size = tuple[int, int]

_TAG = 0x0112
_EXIF = b"Exif\0\0"
_APP1 = 0xE1
_UPSIDE_DOWN = (3, 4, 7, 8)
_MIRRORED = (2, 3, 6, 7)


def read_orientation(file: BinaryIO) -> int:
    """Return the EXIF orientation of the image in `file`, at position 0; 1 if it has none.

    JPEG, PNG, WebP, TIFF and AVIF have one; of all but AVIF, only parts of the file that come
    before or between its pixels are read. A damaged tag counts as none.
    """
    if is_boxed(file.read(12)):
        return _boxed_orientation(file)
    file.seek(0)
    tag = _find_tag(file)
    return tag.value if tag is not None and tag.value in range(1, 9) else 1


def _boxed_orientation(file: BinaryIO) -> int:
    file.seek(0)
    try:
        with open_picture(file) as opened:
            value = opened.getexif().get(_TAG, 1)
    except (OSError, ValueError, SyntaxError):
        return 1
    return value if value in range(1, 9) else 1


def orientation_of(data: bytes) -> int:
    """Return the EXIF orientation of the image in `data`; see `read_orientation`."""
    return read_orientation(io.BytesIO(data))


def without_orientation(data: bytes) -> bytes:
    """Return a TIFF that no decoder turns: OpenCV and Pillow turn all others by themselves.

    Other content is returned as it is.
    """
    tag = _find_tag(io.BytesIO(data)) if data.startswith(tiff.SIGNATURES) else None
    if tag is None or tag.value == 1:
        return data
    upright = (1).to_bytes(tag.size, "little" if tag.is_little else "big")
    return data[: tag.position] + upright + data[tag.position + tag.size :]


def to_upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a stored image (H, W, …) in the orientation in which viewers display it."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def to_stored(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an upright image in its stored orientation: the inverse of `to_upright`."""
    # the two quarter turns are inverse to each other; every other orientation is its own inverse
    return to_upright(image, {6: 8, 8: 6}.get(orientation, orientation))


def turned_size(size: Size, orientation: int) -> Size:
    """Return the upright (height, width) of a stored image, or the stored one of an upright."""
    return (size[1], size[0]) if orientation >= 5 else size


def _find_tag(file: BinaryIO) -> tiff.Number | None:
    try:
        start = _find_tags(file)
    except (struct.error, OverflowError):  # cut off, or a place that no file has
        return None
    return None if start is None else tiff.find_number(file, start, _TAG)


def _find_tags(file: BinaryIO) -> int | None:
    """Return where the tags begin, which have the form of a TIFF; None if there are none."""
    start = file.read(12)
    if start.startswith(tiff.SIGNATURES):
        return 0
    if start.startswith(PNG_SIGNATURE):
        position = _find_chunk(file, 8, ">I4s", b"eXIf")
    elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        position = _find_chunk(file, 12, "<4sI", b"EXIF")
    elif start.startswith(jpeg.START):
        position = _find_exif_segment(file)
    else:
        return None
    if position is None:
        return None
    file.seek(position)
    return position + len(_EXIF) if file.read(len(_EXIF)) == _EXIF else position


def _find_chunk(file: BinaryIO, position: int, form: str, wanted: bytes) -> int | None:
    """Return where the content of a chunk begins; `form` is that of a chunk's head."""
    while True:
        file.seek(position)
        one, other = struct.unpack(form, file.read(8))
        kind, length = (other, one) if form.startswith(">") else (one, other)
        if kind == wanted:
            return position + 8
        if not kind.strip().isalnum():  # no chunk, so the rest of the file is none either
            return None
        # a PNG has a checksum behind the content, WebP fills it up to an even length
        position += 8 + length + (4 if form.startswith(">") else length % 2)


def _find_exif_segment(file: BinaryIO) -> int | None:
    for marker, position, _ in jpeg.segments(file):
        if marker == _APP1:
            file.seek(position + 4)
            if file.read(len(_EXIF)) == _EXIF:
                return position + 4
    return None
