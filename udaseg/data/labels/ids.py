"""Label format `ids`: the values of a single-channel image, or the indices of a palette image."""

import contextlib
import io
import logging
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import MAX_PIXELS, PNG_SIGNATURE, png_bit_depth, png_pixel_format
from udaseg.data.files.images import decode, decode_as_stored
from udaseg.data.labels.lossless import refuse_unusable_image
from udaseg.errors import DataError

log = logging.getLogger(__name__)
_NUMPY_SIGNATURE = b"\x93NUMPY"


def read(path: Path, data: bytes) -> NDArray[Any]:
    """Return the ids of a single-channel or palette image, (H, W) uint8, uint16 or int32.

    Palette images return their indices, which OpenCV would turn into colours. An image with three
    equal channels returns one of them, and a NumPy file its array.

    Raises:
        DataError: The file is damaged, or its form cannot store ids.
    """
    if data.startswith(_NUMPY_SIGNATURE):
        return _read_numpy(path, data)
    refuse_unusable_image(path, data)
    form = png_pixel_format(data)
    if form == "8-bit gray":
        # OpenCV decodes faster than Pillow; if it fails, Pillow below gives the reason
        with contextlib.suppress(DataError):
            grey = decode(path, data, cv2.IMREAD_UNCHANGED)
            if grey.ndim == 2 and grey.dtype == np.uint8:
                return grey
    mode, pixels = decode_as_stored(path, data, in_color=False)
    if mode in ("P", "I;16"):
        return pixels
    if mode == "I":
        return pixels.astype(np.int32)
    if mode in ("1", "L"):
        # Pillow scales grey of 1, 2 and 4 bits to 0..255; undo this to get the stored ids
        bits = png_bit_depth(data) if data.startswith(PNG_SIGNATURE) else {"1": 1, "L": 8}[mode]
        return pixels // np.uint8(255 // (2 ** min(bits, 8) - 1))
    if mode in ("RGB", "RGBA") and not form.startswith("16-bit"):
        red = np.ascontiguousarray(pixels[..., 0])
        if (red == pixels[..., 1]).all() and (red == pixels[..., 2]).all():
            _log_equal_channels(path.parent)
            return red
    raise DataError(
        f"{path}: label_format ids needs one channel, but the image is {mode}; "
        + (
            f"use label_format synthia for ids in {form}"
            if form.startswith("16-bit")
            else "use label_format rgb for colour-coded labels"
        )
    )


@cache
def _log_equal_channels(folder: Path) -> None:
    log.info("%s: labels with three equal channels are read as ids", folder)


def _read_numpy(path: Path, data: bytes) -> NDArray[Any]:
    """Return the array of a NumPy file, which needs two axes and whole numbers."""
    try:
        ids = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    if ids.ndim == 3 and 1 in (ids.shape[0], ids.shape[2]):
        ids = ids.squeeze(0 if ids.shape[0] == 1 else 2)
    if ids.ndim != 2 or ids.dtype.kind not in "iub":
        raise DataError(
            f"{path}: needs (height, width) whole numbers, but the array is {ids.dtype} {ids.shape}"
        )
    if ids.size > MAX_PIXELS:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels")
    if ids.dtype.kind == "b" or ids.dtype == np.int8:
        ids = ids.astype(np.uint8 if ids.dtype.kind == "b" else np.int32)
    if ids.dtype.itemsize > 4 or ids.dtype == np.uint32:
        ids = ids.astype(np.int64)
    return np.ascontiguousarray(ids)
