"""Read the header of an image, and check that the file is complete."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from udaseg.data.files import jpeg, tiff
from udaseg.data.files.bands import Bands
from udaseg.errors import DataError

MAX_PIXELS = 100_000_000
# Pillow's size warning is replaced by the caller's own limit, checked below. Its warnings about odd
# or truncated metadata are irrelevant, or reported as an error when the whole file is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

HEIC_SUFFIXES = (".heic", ".heif")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_HEADER_BYTES = 25  # of a PNG, up to the bits of its values


@dataclass(frozen=True)
class Header:
    """What the header of an image says.

    Attributes:
        height: Stored height in pixels.
        width: Stored width in pixels.
        bits: Bits of each value.
        loss: What an RGB image lacks of it, such as "has 3 pages, of which the first is read";
            empty if nothing.
        problem: Why it is not read as an image, though it may be a label; empty if it is.
    """

    height: int
    width: int
    bits: int = 8
    loss: str = ""
    problem: str = ""


def read_header(
    path: Path, file: BinaryIO, max_pixels: int = MAX_PIXELS, bands: Bands | None = None
) -> Header:
    """Return what the header of the image in `file` says, without decoding it.

    Args:
        path: Name for error messages.
        file: The open file, at position 0.
        max_pixels: Maximum number of pixels, at most 178 million.
        bands: The bands of a TIFF that are read; None for gray, RGB or RGBA.
    """
    start = file.read(_HEADER_BYTES)
    if start.startswith(PNG_SIGNATURE) and len(start) == _HEADER_BYTES and start[12:16] == b"IHDR":
        width, height = struct.unpack(">II", start[16:24])
        header = Header(height, width, start[24], _loss_of_pages(_png_frames(file)))
    elif start.startswith(jpeg.START):
        frame = jpeg.read_frame(path, file)
        header = Header(
            frame.height, frame.width, loss=tiff.CMYK_LOSS if frame.components == 4 else ""
        )
    elif start.startswith(tiff.SIGNATURES):
        page = tiff.read_tiff(path, file)
        loss = ", ".join(filter(None, (page.loss(bands), _loss_of_pages(page.pages))))
        header = Header(*page.size, page.bits, loss, page.problem(bands))
    else:
        header = _read_by_pillow(path, file, max_pixels)
    if header.width * header.height > max_pixels:
        raise DataError(
            f"{path}: {header.width}x{header.height} is more than {max_pixels:,} pixels"
        )
    if header.width < 1 or header.height < 1:
        raise DataError(f"{path}: damaged: its header states {header.width}x{header.height} pixels")
    return header


def is_boxed(start: bytes) -> bool:
    """Return whether a file begins like AVIF or HEIC, which only Pillow reads here."""
    return start[4:8] == b"ftyp"


@cache
def reads_heic() -> bool:
    """Return whether the extra `heic` is installed; Pillow then reads HEIC, turned upright."""
    if find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return True


def open_picture(file: BinaryIO) -> Image.Image:
    """Return what Pillow opens, also HEIC if the extra is installed."""
    if is_boxed(file.read(12)):
        reads_heic()
    file.seek(0)
    return Image.open(file)


def _read_by_pillow(path: Path, file: BinaryIO, max_pixels: int) -> Header:
    file.seek(0)
    try:
        with open_picture(file) as opened:
            width, height = opened.size
            return Header(height, width, loss=_loss_of_pages(getattr(opened, "n_frames", 1)))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        is_empty = file.seek(0, io.SEEK_END) == 0
        problem = "is empty" if is_empty else "is not a readable image"
        if path.suffix.lower() in HEIC_SUFFIXES and not reads_heic():
            problem = "is HEIC, which `pip install 'udaseg[heic]'` reads"
        raise DataError(f"{path}: {problem}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {max_pixels:,} pixels") from error


def _loss_of_pages(count: int) -> str:
    return f"has {count} pages, of which only the first is read" if count > 1 else ""


def _png_frames(file: BinaryIO) -> int:
    """Return the number of frames of a PNG, which the chunks before its pixels state."""
    position = len(PNG_SIGNATURE)
    while True:
        file.seek(position)
        chunk = file.read(12)
        if len(chunk) < 12 or chunk[4:8] in (b"IDAT", b"IEND"):
            return 1
        if chunk[4:8] == b"acTL":
            return int.from_bytes(chunk[8:], "big")
        position += 12 + int.from_bytes(chunk[:4], "big")


def png_bit_depth(data: bytes) -> int:
    """Return the bits per channel of the PNG in `data`."""
    return data[24]


def png_pixel_format(data: bytes) -> str:
    """Return the pixel format of a PNG, such as `16-bit RGB`; empty for other data."""
    if not data.startswith(PNG_SIGNATURE):
        return ""
    return f"{data[24]}-bit {_PNG_COLORS.get(data[25], 'unknown')}"


def refuse_damaged_image(path: Path, data: bytes) -> None:
    """Raise a `DataError` for a PNG with a wrong checksum, or a JPEG or TIFF that ends early.

    Some decoders accept them.
    """
    if data.startswith(PNG_SIGNATURE):
        _check_png(path, data)
    elif data.startswith(jpeg.START):
        jpeg.refuse_damaged_jpeg(path, data)
    elif data.startswith(tiff.SIGNATURES):
        tiff.refuse_damaged_tiff(path, data)


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
