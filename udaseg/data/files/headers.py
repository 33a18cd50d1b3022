"""Read the size of an image from its header, and check that the file is complete."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from udaseg.errors import DataError

MAX_PIXELS = 100_000_000
# Pillow's size warning is replaced by the caller's own limit, checked below. Its warnings about odd
# or truncated metadata are irrelevant, or reported as an error when the whole file is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_MAX_SEGMENTS = 20_000
_START_OF_SCAN = 0xDA

# frame headers contain the size; C4, C8 and CC in this range have other meanings
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image_size(path: Path, file: BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) of the image in `file`, from the header alone.

    Args:
        path: Name for error messages.
        file: The open file, at position 0.
        max_pixels: Maximum number of pixels, at most 178 million.
    """
    start = file.read(24)
    if start.startswith(PNG_SIGNATURE) and len(start) == 24 and start[12:16] == b"IHDR":
        width, height = struct.unpack(">II", start[16:24])
    elif start.startswith(_JPEG_START):
        height, width = _jpeg_size(path, file)
    else:
        file.seek(0)
        try:
            with Image.open(file) as opened:
                width, height = opened.size
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            problem = "is not a readable image" if start else "is empty"
            raise DataError(f"{path}: {problem}") from error
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: more than {max_pixels:,} pixels") from error
    if width * height > max_pixels:
        raise DataError(f"{path}: {width}x{height} is more than {max_pixels:,} pixels")
    if width < 1 or height < 1:
        raise DataError(f"{path}: damaged: its header states {width}x{height} pixels")
    return height, width


def png_bit_depth(data: bytes) -> int:
    """Return the bits per channel of the PNG in `data`."""
    return data[24]


def png_pixel_format(data: bytes) -> str:
    """Return the pixel format of a PNG, such as `16-bit RGB`; empty for other data."""
    if not data.startswith(PNG_SIGNATURE):
        return ""
    return f"{data[24]}-bit {_PNG_COLORS.get(data[25], 'unknown')}"


def refuse_damaged_image(path: Path, data: bytes) -> None:
    """Raise a `DataError` for a PNG with a wrong checksum or a JPEG without an end.

    Some decoders accept both.
    """
    if data.startswith(PNG_SIGNATURE):
        _check_png(path, data)
    elif data.startswith(_JPEG_START):
        _check_jpeg(path, data)


def _check_png(path: Path, data: bytes) -> None:
    end, kind = len(PNG_SIGNATURE), b""
    view = memoryview(data)
    while kind != b"IEND":
        start = end  # a chunk: length of its content, kind, content, checksum
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        if end > len(data):
            raise DataError(f"{path}: damaged: the PNG is cut off")
        kind = data[start + 4 : start + 8]
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise DataError(f"{path}: damaged: the checksum of PNG chunk {kind!r} fails")


def _check_jpeg(path: Path, data: bytes) -> None:
    for marker, position, length in _jpeg_segments(io.BytesIO(data)):
        # inside a scan, FF is always followed by 00 or a restart marker, so the first FFD9 ends it
        if marker == _START_OF_SCAN and data.find(_JPEG_END, position + 2 + length) >= 0:
            return
    raise DataError(f"{path}: damaged: the JPEG is cut off")


def _jpeg_size(path: Path, file: BinaryIO) -> tuple[int, int]:
    for marker, position, _ in _jpeg_segments(file):
        if marker in _FRAME_MARKERS:
            file.seek(position + 5)
            frame = file.read(4)
            if len(frame) == 4:
                height, width = struct.unpack(">HH", frame)
                return height, width
    raise DataError(f"{path}: damaged: the JPEG has no size")


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield marker, position and length of each segment, the first scan last."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        file.seek(position)
        header = file.read(4)
        if len(header) < 4 or header[0] != 0xFF:
            return
        marker = header[1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            position += 2
        else:
            length = int.from_bytes(header[2:], "big")
            yield marker, position, length
            if marker == _START_OF_SCAN:
                return
            position += 2 + length
