"""Label format `ids`: the values of a single-channel image, or the indices of a palette image."""

import contextlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import PNG_SIGNATURE, png_bit_depth, png_pixel_format
from udaseg.data.files.images import decode, decode_as_stored
from udaseg.data.labels.lossless import refuse_unusable_image
from udaseg.errors import DataError


def read(path: Path, data: bytes) -> NDArray[Any]:
    """Return the ids of a single-channel or palette image, (H, W) uint8, uint16 or int32.

    Palette images return their indices, which OpenCV would turn into colours.

    Raises:
        DataError: The file is damaged, or its form cannot store ids.
    """
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
    raise DataError(
        f"{path}: label_format ids needs one channel, but the image is {mode}; "
        + (
            f"use label_format synthia for ids in {form}"
            if form.startswith("16-bit")
            else "use label_format rgb for colour-coded labels"
        )
    )
