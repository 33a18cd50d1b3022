"""Pixels of each class in each scored image, from which any mean IoU can be computed again."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.files import csv_text

IMAGES_FILE = "images.csv"
_COLUMNS = ("intersection", "union", "truth")


@dataclass(frozen=True)
class ImageCounts:
    """Counts of N images and K classes, under the convention of the scores.

    Attributes:
        images: Names of the images, in the order of the split.
        classes: Names of the scored classes.
        intersection: (N, K) pixels of the class that are predicted as it.
        union: (N, K) labelled pixels that are of the class or predicted as it.
        truth: (N, K) pixels of the class.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    truth: NDArray[np.int64]

    def iou(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (R, K) IoU where image n counts `weights[r, n]` times; NaN without truth."""
        intersection, union, truth = (
            weights @ counts.astype(np.float64)
            for counts in (self.intersection, self.union, self.truth)
        )
        iou = np.full(truth.shape, np.nan)
        np.divide(intersection, union, out=iou, where=truth > 0)
        return iou

    def to_csv(self) -> str:
        """Return a line for each image and each class that is in it or predicted in it."""
        return csv_text(self._lines())

    def _lines(self) -> Iterator[Sequence[object]]:
        yield ["image", "class", *_COLUMNS]
        for row, column in np.argwhere(self.union > 0).tolist():
            counts = (int(getattr(self, name)[row, column]) for name in _COLUMNS)
            yield [self.images[row], self.classes[column], *counts]


def read_image_counts(path: Path, classes: tuple[str, ...]) -> ImageCounts | None:
    """Return the counts of an `images.csv` over `classes`; None if it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = tuple(dict.fromkeys(row["image"] for row in rows))
        image_of = {name: index for index, name in enumerate(names)}
        class_of = {name: index for index, name in enumerate(classes)}
        tables: Mapping[str, NDArray[np.int64]] = {
            column: np.zeros((len(names), len(classes)), np.int64) for column in _COLUMNS
        }
        for row in rows:
            place = image_of[row["image"]], class_of[row["class"]]
            for column, table in tables.items():
                table[place] = int(row[column])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error):
        return None
    return ImageCounts(names, classes, **tables)
