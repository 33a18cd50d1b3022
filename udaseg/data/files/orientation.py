"""The EXIF orientation of photos."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EXIF_ORIENTATION = 0x0112
_UPSIDE_DOWN = (3, 4, 7, 8)
_MIRRORED = (2, 3, 6, 7)


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it is missing or unreadable."""
    try:
        with Image.open(path) as opened:
            value = opened.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1


def to_upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a stored image (H, W, …) in the orientation in which viewers display it."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def to_stored(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an upright image in its stored orientation: the inverse of `to_upright`."""
    # the two quarter turns are inverse to each other; every other orientation is its own inverse
    return to_upright(image, {6: 8, 8: 6}.get(orientation, orientation))
