"""Rare-class sampling of a labelled source: which class, which image, and which window of it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RareClasses:
    """The numbers of rare-class sampling.

    Attributes:
        temperature: Of the softmax over classes; smaller favours the rarest more.
        min_pixels: Pixels of the class that an image must hold, at the label's own size.
        min_crop_pixels: Pixels of the class that the crop must hold, at the crop's resolution.

    Reference:
        Hoyer et al., DAFormer (CVPR 2022), released code: T 0.01, more than 3000 px an image, more
        than half of that a crop. Differs: "at least" instead of "more than".
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_pixels: int = 1500


def class_chances(
    pixels: NDArray[np.int64], temperature: float, among: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return how likely each class is drawn, (K,): softmax of (1 - f) / temperature.

    f is a class's share of all labelled pixels.

    Args:
        pixels: (K,) labelled pixels of each class.
        temperature: Of the softmax.
        among: (K,) classes that may be drawn; None takes those with a pixel. Others get 0.

    Raises:
        ValueError: No class may be drawn.
    """
    among = pixels > 0 if among is None else among & (pixels > 0)
    if not among.any():
        raise ValueError("no class to draw")
    scores = (1 - pixels / pixels.sum()) / temperature
    chances = np.exp(np.where(among, scores - scores[among].max(), -np.inf))
    return np.asarray(chances / chances.sum(), np.float64)


class RareImages:
    """Images of a split by the classes that they hold enough of.

    Args:
        pixels: (N, K) pixels of each class in each label.
        rare: The numbers.

    Attributes:
        chances: (K,) how likely each class is drawn.
        left_out: Classes with pixels, none of whose images holds enough of them.

    Raises:
        ValueError: No image holds enough of any class.
    """

    def __init__(self, pixels: NDArray[np.int64], rare: RareClasses) -> None:
        enough = pixels >= max(1, rare.min_pixels)
        drawn: NDArray[np.bool_] = np.any(enough, axis=0)
        total = pixels.sum(0)
        self.chances = class_chances(total, rare.temperature, drawn)
        self.left_out = tuple(np.flatnonzero((total > 0) & ~drawn).tolist())
        self._images = [np.flatnonzero(column) for column in enough.T]
        self._classes = np.flatnonzero(drawn)
        self._ladder = np.cumsum(self.chances[self._classes])

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return an image and the class that it is drawn for."""
        step = np.searchsorted(self._ladder, rng.random() * self._ladder[-1], side="right")
        chosen = int(self._classes[min(int(step), len(self._classes) - 1)])
        return self.draw_with(chosen, rng), chosen

    def draw_with(self, train_id: int, rng: np.random.Generator) -> int:
        """Return an image that holds enough of a class, each of them equally likely."""
        images = self._images[train_id]
        return int(images[rng.integers(len(images))])


def rare_corner(
    labels: NDArray[np.uint8],
    train_id: int,
    size: tuple[int, int],
    least: int,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Return (top, left) of a window that holds at least `least` pixels of a class.

    All such windows are equally likely; where there is none, all with the most pixels are. One
    integral image counts them all, so nothing is tried twice.

    Args:
        labels: (H, W) train ids.
        train_id: The class.
        size: (height, width) of the window; what reaches beyond the labels counts nothing.
        least: Pixels of the class that are enough.
        rng: Draws the window.

    Reference:
        DAFormer's released code tries up to ten random crops, each read from disk again, and takes
        the last. Differs: exact in one pass.
    """
    height, width = min(size[0], labels.shape[0]), min(size[1], labels.shape[1])
    # (H+1, W+1): pixels of the class above and left of each corner
    table = cv2.integral((labels == train_id).view(np.uint8))
    strips = table[height:] - table[: table.shape[0] - height]
    counts = strips[:, width:] - strips[:, : table.shape[1] - width]
    places = np.flatnonzero(counts >= min(least, int(counts.max())))
    top, left = divmod(int(places[rng.integers(len(places))]), counts.shape[1])
    return top, left
