"""Encode images as `data:` URIs: photos as JPEG, class maps as PNG with exact colours."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.reporting.html.content import Color

SHOWN_PX = 640
_QUALITY = 82


def shrunk(picture: NDArray[np.uint8], *, mask: bool) -> NDArray[np.uint8]:
    """Resize a picture to at most `SHOWN_PX` per side; class ids are never interpolated."""
    height, width = picture.shape[:2]
    factor = SHOWN_PX / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_NEAREST_EXACT if mask else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def photo_uri(picture: NDArray[np.uint8]) -> str:
    """Return an (H, W, 3) RGB image as a JPEG `data:` URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=_QUALITY)
    return _address("jpeg", buffer.getvalue())


def mask_uri(labels: NDArray[np.uint8], colors: Sequence[Color]) -> str:
    """Return (H, W) class ids as a PNG `data:` URI in class colours; black without a class."""
    picture = Image.fromarray(labels)
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8).reshape(-1, 3)
    picture.putpalette(table.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _address("png", buffer.getvalue())


def _address(image_type: str, data: bytes) -> str:
    return f"data:image/{image_type};base64,{base64.b64encode(data).decode()}"
