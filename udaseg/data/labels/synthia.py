"""Label format `synthia`: the first channel of a 16-bit colour PNG."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import png_pixel_format
from udaseg.data.files.images import checked_bytes, decode
from udaseg.errors import DataError


def read(path: Path, data: bytes) -> NDArray[Any]:
    """Return the first RGB channel of a 16-bit colour PNG, (H, W) uint16.

    Pillow would read it as zeros.

    Raises:
        DataError: The file is damaged, or not a colour PNG of 16 bits.
    """
    checked_bytes(path, data)
    form = png_pixel_format(data)
    if form not in ("16-bit RGB", "16-bit RGBA"):
        raise DataError(
            f"{path}: label_format synthia needs three channels of 16 bits, but the image is "
            f"{form or 'not a PNG'}"
        )
    channels = decode(path, data, cv2.IMREAD_UNCHANGED)
    return np.ascontiguousarray(channels[..., 2])  # OpenCV orders blue, green, red
