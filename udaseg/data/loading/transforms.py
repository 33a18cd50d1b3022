"""Resize, crop and mirror images and labels, as uint8 arrays."""

import math
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE

Resampling = Literal["area", "bicubic"]


def resize_image(image: Pixels, size: tuple[int, int], resampling: Resampling = "area") -> Pixels:
    """Return `image` (H, W, 3) resized to `size` (height, width).

    With `area`, shrinking averages, which keeps thin structures without aliasing, and enlarging is
    bilinear. `bicubic` is that of Pillow, which the released code of most methods uses.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if resampling == "bicubic":
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized, np.uint8)
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def resize_labels(labels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return `labels` (H, W) resized by nearest neighbour, which adds no other class."""
    height, width = size
    if labels.shape == (height, width):
        return labels
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)


def enlarge_to_cover(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Return `image` enlarged, at its aspect ratio, to cover `size`; larger ones are unchanged.

    Padding would add black pixels, which a teacher labels with confidence.
    """
    height, width = image.shape[:2]
    factor = max(size[0] / height, size[1] / width)
    if factor <= 1:
        return image
    return resize_image(image, (math.ceil(height * factor), math.ceil(width * factor)))


def random_corner(
    shape: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Return (top, left) of a random window of `size` in `shape`; 0 where the window is larger."""
    top = int(rng.integers(0, max(0, shape[0] - size[0]) + 1))
    left = int(rng.integers(0, max(0, shape[1] - size[1]) + 1))
    return top, left


def crop(
    image: Pixels, labels: Pixels | None, size: tuple[int, int], corner: tuple[int, int]
) -> tuple[Pixels, Pixels | None]:
    """Return the same window of image (H, W, 3) and labels (H, W), as views if it fits.

    A window larger than the image is filled at the bottom and the right, with black and `IGNORE`.
    """
    (height, width), (top, left) = size, corner
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = image[rows, columns]
    labels = None if labels is None else labels[rows, columns]
    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]))
    if missing != ((0, 0), (0, 0)):
        image = np.pad(image, (*missing, (0, 0)))
        labels = None if labels is None else np.pad(labels, missing, constant_values=IGNORE)
    return image, labels


def random_mirror(
    image: Pixels, labels: Pixels | None, rng: np.random.Generator
) -> tuple[Pixels, Pixels | None]:
    """Return image and labels, both mirrored left-right with probability 1/2."""
    if rng.random() < 0.5:
        return image, labels
    return image[:, ::-1], None if labels is None else labels[:, ::-1]
