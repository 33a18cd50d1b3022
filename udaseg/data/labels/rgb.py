"""Label format `rgb`: the colours of an image."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import png_pixel_format
from udaseg.data.files.images import decode_as_stored
from udaseg.data.labels.lossless import refuse_unusable_image
from udaseg.errors import DataError


def read(path: Path, data: bytes) -> NDArray[Any]:
    """Return r << 16 | g << 8 | b of an 8-bit colour or palette image, (H, W) int32.

    Raises:
        DataError: The file is damaged, or has no colours of 8 bits.
    """
    refuse_unusable_image(path, data)
    form = png_pixel_format(data)
    mode, pixels = decode_as_stored(path, data, in_color=True)
    if mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{path}: label_format rgb needs colours, but the image is {mode}")
    if form.startswith("16-bit"):  # Pillow would drop the lower half of each channel
        raise DataError(f"{path}: label_format rgb needs 8 bits, but the image is {form}")
    rgb = pixels.astype(np.int32)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
