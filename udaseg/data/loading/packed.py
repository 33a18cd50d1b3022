"""Packed pixels: differences between rows, compressed by zstd; several times faster than PNG.

An image is stored as differences to the row above, with red and blue as differences to green, and
each row as three planes of colour. It is as small as a PNG and needs one addition per row to
decode. Labels are stored unchanged.
"""

import itertools
import struct
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from udaseg.data.files.headers import MAX_PIXELS
from udaseg.data.files.images import Pixels
from udaseg.errors import DataError, EnvironmentFault

_HEADER = struct.Struct("<8sIII")  # mark, height, width, channels
_MAGIC = b"UDASEGP1"
_LEVEL = 1


def import_zstd() -> ModuleType:
    """Return the standard library's zstd module, or its backport."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd as module
        else:
            from backports import zstd as module
    except ImportError as error:
        raise EnvironmentFault(
            "the raw cache needs zstd: pip install 'udaseg[cache]', or use --cache-format png"
        ) from error
    return module


def pack(pixels: Pixels) -> bytes:
    """Return (H, W) or (H, W, 3) uint8 pixels as bytes for `unpack`."""
    stored, channels = pixels, 1
    if pixels.ndim == 3:
        channels = 3
        stored = pixels.transpose(0, 2, 1).copy()  # (H, 3, W)
        stored[1:] -= pixels[:-1].transpose(0, 2, 1)
        stored[:, 0] -= stored[:, 1]
        stored[:, 2] -= stored[:, 1]
    module = import_zstd()
    options = {
        module.CompressionParameter.compression_level: _LEVEL,
        module.CompressionParameter.checksum_flag: 1,
    }
    body: bytes = module.compress(np.ascontiguousarray(stored).tobytes(), options=options)
    return _HEADER.pack(_MAGIC, pixels.shape[0], pixels.shape[1], channels) + body


def unpack(path: Path, data: bytes) -> Pixels:
    """Return the pixels of packed bytes, the content of `path`."""
    module = import_zstd()
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise DataError(f"{path}: contains no packed pixels")
    _, height, width, channels = _HEADER.unpack_from(data)
    size = height * width * channels
    if not 0 < size <= 3 * MAX_PIXELS or channels not in (1, 3):
        raise DataError(f"{path}: damaged: its header says {width}x{height}x{channels}")
    frame = module.ZstdDecompressor()
    try:
        # never more than the header says, whatever the frame contains
        unzipped = frame.decompress(memoryview(data)[_HEADER.size :], max_length=size + 1)
    except module.ZstdError as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if len(unzipped) != size or not frame.eof:  # at eof the checksum is verified
        raise DataError(f"{path}: damaged: {len(unzipped)} bytes instead of {size}")
    stored = np.frombuffer(bytearray(unzipped), np.uint8).reshape(height, channels, width)
    if channels == 1:
        return stored[:, 0]
    stored[:, 0] += stored[:, 1]
    stored[:, 2] += stored[:, 1]
    for above, row in itertools.pairwise(stored.reshape(height, -1)):
        row += above
    return np.asarray(cv2.merge([stored[:, 0], stored[:, 1], stored[:, 2]]), np.uint8)
