"""Rare-class sampling of a labelled source: choose a class, an image and a window of it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.images import Pixels


@dataclass(frozen=True)
class RareClassSettings:
    """Settings of rare-class sampling.

    Attributes:
        temperature: Of the softmax; smaller values favour the rarest classes more.
        min_pixels: Minimum pixels of the class in an image, at the label's own size.
        min_crop_pixels: Minimum pixels of the class in a crop, at the crop's resolution.

    Reference:
        Hoyer et al., DAFormer (CVPR 2022), released code: T 0.01, more than 3000 px per image, more
        than half of that per crop. Differs: "at least" instead of "more than".
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_pixels: int = 1500


def class_probabilities(
    pixels: NDArray[np.int64], temperature: float, allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the probability of each class, (K,): softmax of (1 - f) / temperature.

    f is a class's share of all labelled pixels, (K,). Classes that are not `allowed` (K,), or have
    no pixels, get probability 0.
    """
    allowed = pixels > 0 if allowed is None else allowed & (pixels > 0)
    if not allowed.any():
        raise ValueError("no class to draw")
    scores = (1 - pixels / pixels.sum()) / temperature
    chances = np.exp(np.where(allowed, scores - scores[allowed].max(), -np.inf))
    return np.asarray(chances / chances.sum(), np.float64)


class RareClassImages:
    """Draw images of a split by the classes of which they have enough pixels.

    Args:
        pixels: (N, K) pixels of each class in each label.

    Attributes:
        probabilities: (K,) probability of each class.
        classes: Classes that are drawn.
        unavailable_classes: Classes that have pixels, but not enough in any image.
    """

    def __init__(self, pixels: NDArray[np.int64], settings: RareClassSettings) -> None:
        enough = pixels >= max(1, settings.min_pixels)
        eligible: NDArray[np.bool_] = np.any(enough, axis=0)
        total = pixels.sum(0)
        self.probabilities = class_probabilities(total, settings.temperature, eligible)
        self.unavailable_classes = tuple(np.flatnonzero((total > 0) & ~eligible).tolist())
        self._images = [np.flatnonzero(column) for column in enough.T]
        self._classes = np.flatnonzero(eligible)
        self.classes = frozenset(self._classes.tolist())
        self._cumulative = np.cumsum(self.probabilities[self._classes])

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw a class, then an image of it; return image and class."""
        mark = rng.random() * self._cumulative[-1]
        position = int(np.searchsorted(self._cumulative, mark, side="right"))
        train_id = int(self._classes[min(position, len(self._classes) - 1)])
        return self.draw_image(train_id, rng), train_id

    def draw_image(self, train_id: int, rng: np.random.Generator) -> int:
        """Return an image with enough pixels of a class; all such images are equally likely."""
        images = self._images[train_id]
        return int(images[rng.integers(len(images))])


def rare_class_corner(
    labels: Pixels, train_id: int, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Return (top, left) of a window with at least `min_pixels` pixels of a class.

    All such windows are equally likely; if there is none, all with the most pixels are. One
    integral image counts the pixels of all windows, so no window is tried twice. The part of a
    window beyond the labels (H, W) has no pixels.

    Reference:
        DAFormer's released code tries up to ten random crops, reads each from disk again, and uses
        the last. Differs: exact in one pass.
    """
    height, width = min(size[0], labels.shape[0]), min(size[1], labels.shape[1])
    # (H+1, W+1): pixels of the class above and left of each corner
    table = cv2.integral((labels == train_id).view(np.uint8))
    strips = table[height:] - table[: table.shape[0] - height]
    counts = strips[:, width:] - strips[:, : table.shape[1] - width]
    candidates = np.flatnonzero(counts >= min(min_pixels, int(counts.max())))
    top, left = divmod(int(candidates[rng.integers(len(candidates))]), counts.shape[1])
    return top, left
