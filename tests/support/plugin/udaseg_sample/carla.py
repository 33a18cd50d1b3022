"""The label format of CARLA's camera: the class id is the red channel of a colour PNG."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.errors import DataError


def read(path: Path, data: bytes) -> NDArray[np.uint8]:
    """Return the ids (H, W) of a label file.

    Args:
        path: Name of the file, for messages.
        data: Its content.

    Raises:
        DataError: It is no colour image.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise DataError(f"{path}: is no colour PNG")
    return np.ascontiguousarray(pixels[..., 2])  # OpenCV's order is blue, green, red
