"""Read images and labels with exact ids and precise errors, and write PNGs atomically."""

import ctypes
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from udaseg.data.files import jpeg, tiff
from udaseg.data.files.bands import Bands, read_bands
from udaseg.data.files.headers import (
    HEIC_SUFFIXES,
    MAX_PIXELS,
    Header,
    is_boxed,
    open_picture,
    read_header,
    refuse_damaged_image,
)
from udaseg.data.files.orientation import (
    orientation_of,
    read_orientation,
    to_upright,
    without_orientation,
)
from udaseg.errors import DataError
from udaseg.files import write_atomic

Pixels = NDArray[np.uint8]
_T = TypeVar("_T")

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"),
    *((".avif",) if features.check("avif") else ()),
    *((".jp2",) if features.check("jpg_2000") else ()),
    *(HEIC_SUFFIXES if find_spec("pillow_heif") is not None else ()),
)
"""The suffixes of images that this installation reads."""

# glibc's malloc.h; larger blocks are always returned
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK_BYTES = 2**25

# damaged files raise a DataError; without this OpenCV would print messages as well
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file that is not empty."""
    try:
        refuse_irregular(path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path}: is empty")
    return data


def image_header(path: Path, *, max_pixels: int = MAX_PIXELS, bands: Bands | None = None) -> Header:
    """Return what the header of an image says; `bands` as in `read_values`."""
    return _read_start(path, lambda file: read_header(path, file, max_pixels, bands))


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) of an image as stored, from the header alone."""
    header = image_header(path, max_pixels=max_pixels)
    return header.height, header.width


def image_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8, without decoding it."""
    return _read_start(path, read_orientation)


def _read_start(path: Path, read: Callable[[BinaryIO], _T]) -> _T:
    try:
        refuse_irregular(path)
        with path.open("rb") as file:
            return read(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_image(
    path: Path,
    *,
    data: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
) -> Pixels:
    """Return an image upright, as viewers show it, (H, W, 3) uint8 RGB; see `read_stored_image`."""
    return to_upright(*read_stored_image(path, data=data, max_pixels=max_pixels, bits=bits))


def read_stored_image(
    path: Path,
    *,
    data: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    bands: Bands | None = None,
) -> tuple[Pixels, int]:
    """Return an image as stored, (H, W, 3) uint8 RGB, and its EXIF orientation, 1 to 8.

    Grey is repeated to three channels, and alpha is dropped; it changes no colour.

    Args:
        path: The file.
        data: Content of the file, if already read.
        max_pixels: Maximum number of pixels, checked before decoding.
        bits: Bits that the values of 16-bit images use; see `to_uint8`.
        bands: Those of a TIFF that are read; see `read_values`.
    """
    data = read_bytes(path) if data is None else data
    values = read_values(path, data=data, max_pixels=max_pixels, bands=bands)
    return to_uint8(path, values, bits), orientation_of(data)


def read_values(
    path: Path,
    *,
    data: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    bands: Bands | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the values of an image as stored, (H, W, 3) RGB, uint8 or uint16.

    Of a TIFF, `bands` are read as red, green and blue; other files have no others.
    """
    data = read_bytes(path) if data is None else data
    header = read_header(path, io.BytesIO(data), max_pixels, bands)
    refuse_damaged_image(path, data)
    if header.problem:
        raise DataError(f"{path}: {header.problem}")
    if data.startswith(tiff.SIGNATURES):
        if bands is not None:
            return read_bands(path, data, bands)
        return _decode_tiff(path, data, header.bits)
    if is_boxed(data):
        return decode_as_stored(path, data, in_color=True)[1]
    # decoding directly to RGB saves a pass over the image
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
    return decode(path, jpeg.without_end(data) if data.startswith(jpeg.START) else data, flags)


def _decode_tiff(path: Path, data: bytes, bits: int) -> NDArray[Any]:
    """Return what a TIFF stores, (H, W, 3) RGB, uint8 or uint16."""
    if bits <= 8:  # OpenCV multiplies colours by alpha, and accepts data that end early
        return decode_as_stored(path, data, in_color=True)[1]
    # all other modes of OpenCV round or mix up values of 16 bits
    values = decode(path, data, cv2.IMREAD_UNCHANGED)
    if values.ndim == 2:
        values = values[..., None].repeat(3, axis=2)
    values = np.ascontiguousarray(values[..., 2::-1])
    # OpenCV enlarges packed values of 10, 12 or 14 bits to 16
    return values if bits == 16 else to_uint8(path, values)


def to_uint8(
    path: Path, values: NDArray[np.uint8] | NDArray[np.uint16], bits: int | None = None
) -> Pixels:
    """Return values that `read_values` returned as uint8; of uint16 the upper 8 of `bits`.

    Args:
        path: Name for error messages.
        values: uint8 are returned unchanged.
        bits: Bits that uint16 values use, 8 to 16; None means 16.

    Raises:
        DataError: A value needs more bits.
    """
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    bits = bits or 16
    refuse_more_bits(path, int(values.max()), bits)
    return (values >> (bits - 8)).astype(np.uint8)


def refuse_more_bits(path: Path, peak: int, bits: int) -> None:
    """Raise a `DataError` if the largest value of a 16-bit image needs more than `bits`."""
    if peak >= 2**bits:
        raise DataError(
            f"{path}: its values reach {peak}, but 16-bit images are read as {bits} bits here, at "
            f"most {2**bits - 1}"
        )


def write_png(
    path: Path,
    pixels: Pixels,
    *,
    palette: tuple[tuple[int, int, int], ...] | None = None,
    bgr: bool = False,
) -> None:
    """Write (H, W) or (H, W, 3) RGB uint8 pixels as a PNG, atomically; create its folder.

    Args:
        path: The file.
        pixels: The pixels.
        palette: Colours of the values 0, 1, …; the PNG stores the values and shows the colours.
        bgr: The channels are already in OpenCV's order, which saves a copy of a large image.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(
            f"a PNG needs uint8 (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    if palette is not None:
        colored = Image.fromarray(pixels)
        colored.putpalette([part for color in palette for part in color])
        buffer = io.BytesIO()
        colored.save(buffer, format="PNG")
        write_atomic(path, buffer.getvalue())
        return
    if pixels.ndim == 2:
        # labels have flat areas: without a row filter they are 10 % larger, but read 3 times faster
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    else:
        # this strategy is faster to write and read than deflate levels, and smaller for photos
        options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
        pixels = pixels if bgr else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
    ok, encoded = cv2.imencode(".png", pixels, options)
    if not ok:
        raise ValueError(f"{path}: could not be encoded as a PNG")
    write_atomic(path, encoded.data)


def refuse_irregular(path: Path) -> None:
    """Raise a `DataError` if `path` is not a regular file; reading a pipe would hang."""
    if path.is_file():
        return
    problem = "no such file"
    if path.is_dir():
        problem = "is a folder"
    elif path.exists():
        problem = "is not a regular file"
    elif path.is_symlink():
        problem = "is a broken link"
    raise DataError(f"{path}: {problem}")


def checked_bytes(path: Path, data: bytes | None = None, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the bytes of an image after checking its header and checksums."""
    data = read_bytes(path) if data is None else data
    read_header(path, io.BytesIO(data), max_pixels)
    refuse_damaged_image(path, data)
    return data


def decode(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    """Return what OpenCV decodes from `data`, by `flags` (`cv2.IMREAD_*`), as it is stored."""
    content = np.frombuffer(without_orientation(data), np.uint8)
    try:
        image = cv2.imdecode(content, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise DataError(f"{path}: cannot be decoded")
    return np.asarray(image)


def decode_as_stored(path: Path, data: bytes, *, in_color: bool) -> tuple[str, NDArray[Any]]:
    """Return Pillow's mode and the stored values, or RGB colours if `in_color`."""
    try:
        with open_picture(io.BytesIO(without_orientation(data))) as opened:
            mode = opened.mode
            if in_color:
                return mode, np.asarray(opened.convert("RGB"))
            return mode, np.asarray(opened.convert("L") if mode == "1" else opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error


def keep_freed_memory(most: int = 2**26) -> None:
    """Make the allocator keep up to `most` bytes of freed memory for what is allocated next.

    Otherwise glibc returns the memory of each image, or of each backward pass, to the system, which
    has to fill it with zeros again, page by page. Other allocators are not affected.
    """
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)  # of the C library, if it is glibc
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, most)
