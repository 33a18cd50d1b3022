"""The mask files of one image: orientation, kinds, and whether what is there can stay."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data import ClassSpace, read_image, write_png
from udaseg.errors import DataError
from udaseg.reporting import color_mask, confidence_picture, overlay

Pixels = NDArray[np.uint8]

_EXIF_ORIENTATION = 0x0112
_UPSIDE_DOWN = (3, 4, 7, 8)
_MIRRORED = (2, 3, 6, 7)


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation 1 to 8 of an image; 1 where there is none that can be read."""
    try:
        with Image.open(path) as opened:
            value = opened.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a stored image (H, W, …) as a viewer shows it."""
    turned = image.swapaxes(0, 1) if orientation >= 5 else image
    if orientation in _UPSIDE_DOWN:
        turned = turned[::-1]
    if orientation in _MIRRORED:
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def as_stored(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an upright image as the file stores it: the inverse of `upright`."""
    # the two quarter turns undo each other, everything else undoes itself
    return upright(image, {6: 8, 8: 6}.get(orientation, orientation))


def write_masks(
    masks: dict[str, Path],
    image: Pixels,
    labels: Pixels,
    confidence: NDArray[np.float32] | None,
    classes: ClassSpace,
) -> None:
    """Write each kind of mask, whole or not at all.

    Args:
        masks: File of each kind: `ids` (train ids), `color` (train ids with the class colours as
            palette), `overlay` (colours over the image), `confidence` (0..255).
        image: (H, W, 3) RGB as stored.
        labels: (H, W) train ids.
        confidence: (H, W) in [0, 1]; needed for its kind only.
        classes: Whose colours.
    """
    for kind, path in masks.items():
        match kind:
            case "ids":
                write_png(path, labels)
            case "color":
                write_png(path, labels, palette=classes.colors)
            case "overlay":
                write_png(path, overlay(image, color_mask(labels, classes.colors)))
            case "confidence":
                assert confidence is not None
                write_png(path, confidence_picture(confidence))
            case _:
                raise ValueError(f"'{kind}' is no kind of mask")


def all_whole(masks: dict[str, Path], size: tuple[int, int]) -> bool:
    """Return whether every mask is there, undamaged (checksums too), and of (height, width)."""
    try:
        return all(read_image(path).shape[:2] == size for path in masks.values())
    except DataError:
        return False
