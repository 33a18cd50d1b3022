"""The mask files of one image: orientation, kinds, and whether what is there can stay."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.commands.label_files import stored_ids
from udaseg.data import IGNORE, ClassSpace, read_image, write_atomic, write_png
from udaseg.errors import DataError
from udaseg.reporting import color_mask, confidence_picture, overlay

Pixels = NDArray[np.uint8]

_EXIF_ORIENTATION = 0x0112
_UPSIDE_DOWN = (3, 4, 7, 8)
_MIRRORED = (2, 3, 6, 7)
_BAND_PX = 256
_WITH_PAGES = (".png", ".tif", ".tiff", ".webp")
LARGEST_PX = 150_000_000
"""Most pixels of an image that is predicted: half as many again as are trained on."""


@dataclass(frozen=True)
class Kept:
    """What is kept of what a network says of an image.

    Attributes:
        labels: (H, W) train ids, `IGNORE` where it abstains.
        grey: (H, W) confidence as 0..255; None unless wanted.
        logits: (K, h, w) float32; None unless wanted.
    """

    labels: Pixels
    grey: Pixels | None = None
    logits: NDArray[np.float32] | None = None


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation 1 to 8 of an image; 1 where there is none that can be read."""
    try:
        with Image.open(path) as opened:
            value = opened.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1


def pages_of(path: Path) -> int:
    """Return how many pages or moving pictures a file holds; 1 where that cannot be read."""
    if path.suffix.lower() not in _WITH_PAGES:
        return 1
    try:
        with Image.open(path) as opened:
            return int(getattr(opened, "n_frames", 1))
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError):
        return 1


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


def blended(image: Pixels, labels: Pixels, classes: ClassSpace) -> Pixels:
    """Return an RGB image with the class colours over it; what is ignored stays as it is."""
    blend = np.empty_like(image)
    for rows in _bands(len(image)):
        blend[rows] = overlay(image[rows], color_mask(labels[rows], classes.colors))
        np.copyto(blend[rows], image[rows], where=(labels[rows] == IGNORE)[..., None])
    return blend


def grey(confidence: NDArray[np.float32]) -> Pixels:
    """Return (H, W) confidence in [0, 1] as grey values 0..255."""
    picture = np.empty(confidence.shape, np.uint8)
    for rows in _bands(len(confidence)):
        picture[rows] = confidence_picture(confidence[rows])
    return picture


def counted(labels: Pixels) -> NDArray[np.int64]:
    """Return (256,) pixels of each id."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for rows in _bands(len(labels)):  # numpy counts in a copy that is eight times as large
        counts += np.bincount(labels[rows].ravel(), minlength=IGNORE + 1)
    return counts


def write_masks(masks: dict[str, Path], image: Pixels, said: Kept, classes: ClassSpace) -> None:
    """Write each kind of mask, whole or not at all.

    Args:
        masks: File of each kind: `ids` (train ids, 255 where the network abstains), `label-ids`
            (those of Cityscapes, 0 where it does), `color` (train ids with the class colours as
            palette), `overlay` (colours over the image), `confidence` (0..255), `logits` (K, h, w)
            float32.
        image: (H, W, 3) RGB as stored.
        said: Labels, and grey and logits where their kinds are wanted; all as stored.
        classes: Whose colours.
    """
    labels = said.labels
    for kind, path in masks.items():
        match kind:
            case "ids":
                write_png(path, labels)
            case "label-ids":
                table = np.frombuffer(stored_ids(classes, "label"), np.uint8)
                write_png(path, np.asarray(cv2.LUT(labels, table), np.uint8))
            case "color":
                write_png(path, labels, palette=_palette(labels, classes))
            case "overlay":
                blend = blended(image, labels, classes)
                cv2.cvtColor(blend, cv2.COLOR_RGB2BGR, dst=blend)
                write_png(path, blend, bgr=True)
            case "confidence":
                assert said.grey is not None
                write_png(path, said.grey)
            case "logits":
                assert said.logits is not None
                buffer = io.BytesIO()
                np.save(buffer, said.logits, allow_pickle=False)
                write_atomic(path, buffer.getvalue())
            case _:
                raise ValueError(f"'{kind}' is no kind of mask")


def all_whole(masks: dict[str, Path], size: tuple[int, int]) -> bool:
    """Return whether every mask is there, undamaged (checksums too), and of (height, width)."""
    try:
        return all(
            _is_map(path)
            if kind == "logits"
            else read_image(path, max_pixels=LARGEST_PX).shape[:2] == size
            for kind, path in masks.items()
        )
    except DataError:
        return False


def _bands(height: int) -> Iterator[slice]:
    """Yield rows, few at a time: beside a large picture there is no room for another."""
    for start in range(0, height, _BAND_PX):
        yield slice(start, start + _BAND_PX)


def _is_map(path: Path) -> bool:
    """Return whether a file holds logits, as many as its header says."""
    try:
        return bool(np.load(path, allow_pickle=False).ndim == 3)
    except (OSError, ValueError, EOFError):
        return False


def _palette(labels: Pixels, classes: ClassSpace) -> tuple[tuple[int, int, int], ...]:
    """Return the class colours; with black up to 255 where that occurs, as a PNG needs it."""
    if not bool((labels == IGNORE).any()):
        return classes.colors
    return (*classes.colors, *[(0, 0, 0)] * (IGNORE + 1 - len(classes)))
