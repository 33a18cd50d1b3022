"""Pixels as packed bytes: differences between rows under zstd, several times faster than a PNG.

An image is stored as differences to the row above, red and blue as differences to green, each row's
colours one after another: as small as a PNG, and undone in one addition a row. Labels are stored as
they are.
"""

import struct
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.errors import DataError, EnvironmentFault

_HEAD = struct.Struct("<8sIII")  # mark, height, width, channels
_MARK = b"UDASEGP1"
_LEVEL = 1
_MAX_PIXELS = 100_000_000


def zstd() -> ModuleType:
    """Return the standard library's zstd, or its backport.

    Raises:
        EnvironmentFault: Neither is installed.
    """
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd as module
        else:
            from backports import zstd as module
    except ImportError as error:
        raise EnvironmentFault(
            "the raw cache needs zstd: pip install 'udaseg[cache]', or take --cache-format png"
        ) from error
    return module


def pack(pixels: NDArray[np.uint8]) -> bytes:
    """Return (H, W) or (H, W, 3) uint8 as bytes that `unpack` reads.

    Raises:
        EnvironmentFault: There is no zstd here.
        ValueError: Another shape or type.
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise ValueError(f"only uint8 (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}")
    channels = 1 if pixels.ndim == 2 else 3
    stored = pixels
    if channels == 3:
        stored = pixels.transpose(0, 2, 1).copy()  # (H, 3, W)
        stored[1:] -= pixels[:-1].transpose(0, 2, 1)
        stored[:, 0] -= stored[:, 1]
        stored[:, 2] -= stored[:, 1]
    module = zstd()
    options = {
        module.CompressionParameter.compression_level: _LEVEL,
        module.CompressionParameter.checksum_flag: 1,
    }
    body: bytes = module.compress(np.ascontiguousarray(stored).tobytes(), options=options)
    return _HEAD.pack(_MARK, pixels.shape[0], pixels.shape[1], channels) + body


def unpack(path: Path, data: bytes) -> NDArray[np.uint8]:
    """Return the pixels of packed bytes.

    Args:
        path: How messages name them.
        data: What `pack` gave.

    Raises:
        DataError: They are damaged.
        EnvironmentFault: There is no zstd here.
    """
    module = zstd()
    if len(data) < _HEAD.size or not data.startswith(_MARK):
        raise DataError(f"{path}: holds no packed pixels")
    _, height, width, channels = _HEAD.unpack_from(data)
    size = height * width * channels
    if not 0 < size <= 3 * _MAX_PIXELS or channels not in (1, 3):
        raise DataError(f"{path}: damaged: its header says {width}x{height}x{channels}")
    frame = module.ZstdDecompressor()
    try:
        # never more than the header says, whatever the frame holds
        unzipped = frame.decompress(memoryview(data)[_HEAD.size :], max_length=size + 1)
    except module.ZstdError as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if len(unzipped) != size or not frame.eof:  # at its end the checksum was right
        raise DataError(f"{path}: damaged: {len(unzipped)} bytes instead of {size}")
    flat = np.frombuffer(bytearray(unzipped), np.uint8)
    if channels == 1:
        return flat.reshape(height, width)
    return _image(flat.reshape(height, 3, width))


def _image(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) from the differences (H, 3, W), which are used up."""
    stored[:, 0] += stored[:, 1]
    stored[:, 2] += stored[:, 1]
    rows = stored.reshape(len(stored), -1)
    for number in range(1, len(rows)):
        np.add(rows[number], rows[number - 1], out=rows[number])
    planes = [stored[:, 0], stored[:, 1], stored[:, 2]]
    return np.asarray(cv2.merge(planes), np.uint8)
