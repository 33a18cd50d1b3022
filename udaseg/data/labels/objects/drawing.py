"""Draw the objects of an image, and the errors of label files that cannot be understood."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.orientation import Size
from udaseg.errors import DataError
from udaseg.files import parse_json

Mask = NDArray[np.bool_]
BACKGROUND = "background"
"""The label of pixels without an object."""


class NamedLabels(NamedTuple):
    """A label image whose values are positions in a list of labels.

    Attributes:
        positions: (H, W) uint16.
        names: The labels; the first is `BACKGROUND`.
    """

    positions: NDArray[np.uint16]
    names: tuple[str, ...]

    def pixels(self) -> dict[str, int]:
        """Return the number of pixels of each label."""
        counts = np.bincount(self.positions.ravel(), minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))


@dataclass(frozen=True)
class LabelledImage:
    """What a label file says of an image.

    Attributes:
        names: Names of the image file, of which the first that exists is meant.
        size: (height, width) for which it was labelled; None if the file does not say.
        draw: Returns the label image of a size.
    """

    names: tuple[str, ...]
    size: Size | None
    draw: Callable[[Size], NamedLabels]


class Area(NamedTuple):
    """An object: its label, and a function that returns its pixels for an image size."""

    label: str
    draw: Callable[[Size], Mask]


def draw_areas(areas: Iterable[Area], size: Size) -> NamedLabels:
    """Draw objects in their order, later ones over earlier ones."""
    positions = {BACKGROUND: 0}
    index = np.zeros(size, np.uint16)
    for area in areas:
        index[area.draw(size)] = positions.setdefault(area.label, len(positions))
    return NamedLabels(index, tuple(positions))


def polygon_mask(polygons: Sequence[Sequence[float]], size: Size) -> Mask:
    """Return the pixels of polygons [x, y, x, y, ...], filled as pycocotools does.

    Polygons of fewer than three points have no pixels.
    """
    from faster_coco_eval.core import mask as coco

    corners = [list(map(float, polygon)) for polygon in polygons if len(polygon) >= 6]
    if not corners:
        return np.zeros(size, np.bool_)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(corners, *size))), np.bool_)


def turned_mask(
    corners: Sequence[tuple[float, float]], about: tuple[float, float], degrees: float, size: Size
) -> Mask:
    """Return the pixels of a polygon that is turned about a point.

    Args:
        corners: (x, y) of each corner before it is turned, relative to the point.
        about: The point.
        degrees: The angle, clockwise.
        size: (height, width) of the image.
    """
    x, y = about
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in corners]
    return polygon_mask([[part for corner in turned for part in corner]], size)


def ellipse_mask(
    center: tuple[float, float], radii: tuple[float, float], degrees: float, size: Size
) -> Mask:
    """Return the pixels of an ellipse that is turned about its center, clockwise."""
    canvas = np.zeros(size, np.uint8)
    axes = (2 * radii[0], 2 * radii[1])
    cv2.ellipse(canvas, (center, axes, degrees), 1, cv2.FILLED)
    return canvas.astype(np.bool_)


def runs_mask(counts: Sequence[int], size: Size) -> Mask:
    """Return the row-major mask of run lengths that begin with pixels outside of the object."""
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, np.asarray(counts, np.int64)).reshape(size)


def place(part: Mask, top: int, left: int, size: Size) -> Mask:
    """Return the mask of an image in which `part` has its upper left corner at a pixel.

    Raises:
        ValueError: The part is not inside of the image.
    """
    bottom, right = top + part.shape[0], left + part.shape[1]
    if min(top, left) < 0 or bottom > size[0] or right > size[1]:
        raise ValueError(f"a mask reaches to row {bottom}, column {right}, outside of the image")
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = part
    return mask


def read_document(path: Path, data: bytes) -> Any:
    """Return the value of a JSON file.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return parse_json(data.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn the errors of values that are missing or of another kind into a `DataError`."""
    try:
        yield
    except (KeyError, IndexError) as error:
        raise DataError(f"{path}: {what}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{path}: {what}: {error}") from error
