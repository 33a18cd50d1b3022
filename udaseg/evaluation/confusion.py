"""Count a confusion matrix in exact integers, and compute the scores from it."""

import copy
import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from udaseg.distributed import all_gather_object, all_reduce_sum

_NUM_IDS = 256
_MAX_EXACT_PIXELS = 2**24 - 1  # OpenCV counts in float32, which is exact below 2^24


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of images.

    Args:
        num_classes: K; at most 255 including the outside classes.
        ignore: Pixels with this truth are not counted; a prediction of it is an error.
        num_outside: E true classes that cannot be predicted, K to K + E - 1. They do not affect any
            score unless `with_outside` makes them classes.

    Attributes:
        table: (K + E, K + 1) int64 pixels. Rows are the truth, outside classes last; columns the
            prediction, the last one for pixels that were predicted as none of the K.
        counted: For each image in order, which entries of its table are not 0, and these: int64,
            as bytes, which are a quarter of two arrays.
    """

    def __init__(self, num_classes: int, *, ignore: int = 255, num_outside: int = 0) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        rows, columns = num_classes + num_outside, num_classes + 1
        self.table: NDArray[np.int64] = np.zeros((rows, columns), np.int64)
        self.counted: list[bytes] = []

    def update(
        self,
        prediction: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        truth_map: bytes | None = None,
        prediction_map: bytes | None = None,
    ) -> None:
        """Count one image; nothing is counted if this raises a `ValueError`.

        Args:
            prediction: (H, W) uint8 class ids; a value that is not a class is an abstention.
            truth: (H, W) uint8 class ids with `ignore`; all others must be classes.
            truth_map: 256 class ids, for a truth with another class order: the value v stands for
                `truth_map[v]`. The counts are permuted, not the pixels.
            prediction_map: The same for the prediction.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction {prediction.shape} but truth {truth.shape}")
        planes = [np.ascontiguousarray(plane).reshape(1, -1) for plane in (truth, prediction)]
        span = [0, _NUM_IDS, 0, _NUM_IDS]
        pairs = np.zeros((_NUM_IDS, _NUM_IDS), np.int64)
        for start in range(0, truth.size, _MAX_EXACT_PIXELS):
            parts = [plane[:, start : start + _MAX_EXACT_PIXELS] for plane in planes]
            histogram = cv2.calcHist(parts, [0, 1], None, [_NUM_IDS, _NUM_IDS], span)
            # the shape differs between OpenCV 4 and 5
            pairs += np.asarray(histogram).reshape(_NUM_IDS, _NUM_IDS).astype(np.int64)
        if truth_map is not None:
            pairs = _permuted(pairs, truth_map)
        if prediction_map is not None:
            pairs = _permuted(pairs.T, prediction_map).T
        pairs[self.ignore] = 0
        known, unknown = pairs[: len(self.table)], pairs[len(self.table) :].sum()
        if unknown:
            raise ValueError(f"{unknown} pixels of the truth are of unknown classes")
        others = known[:, self.num_classes :].sum(1, keepdims=True)
        image = np.hstack([known[:, : self.num_classes], others])
        self.table += image
        entries = np.flatnonzero(image)
        self.counted.append(np.stack([entries, image.flat[entries]]).tobytes())

    def images(self) -> Iterator["ConfusionMatrix"]:
        """Yield the matrix of each image, in the order in which they were counted."""
        outside = len(self.table) - self.num_classes
        for counted in self.counted:
            entries, counts = np.frombuffer(counted, np.int64).reshape(2, -1)
            image = ConfusionMatrix(self.num_classes, ignore=self.ignore, num_outside=outside)
            image.table.flat[entries] = counts
            yield image

    def with_outside(self, chosen: Sequence[int]) -> "ConfusionMatrix":
        """Return a matrix with these outside classes as classes that were never predicted.

        Like `without_truth`, it knows nothing of single images.
        """
        rows = [*range(self.num_classes), *(self.num_classes + index for index in chosen)]
        whole = ConfusionMatrix(len(rows), ignore=self.ignore)
        whole.table[:, : self.num_classes] = self.table[rows, :-1]
        whole.table[:, -1] = self.table[rows, -1]
        return whole

    def without_truth(self, classes: Sequence[int]) -> "ConfusionMatrix":
        """Return a matrix that ignores the pixels of these true classes."""
        part = copy.copy(self)
        part.table, part.counted = self.table.copy(), []
        part.table[list(classes)] = 0
        return part

    def all_reduce_sum(self, device: torch.device) -> "ConfusionMatrix":
        """Return the counts summed over all processes; they are exchanged through `device`.

        The images stand in the order in which the processes take turns.
        """
        together = copy.copy(self)
        by_rank = all_gather_object(self.counted)
        turns = itertools.zip_longest(*by_rank)
        together.counted = [image for turn in turns for image in turn if image is not None]
        table = torch.from_numpy(self.table).to(device)
        together.table = all_reduce_sum(table).cpu().numpy()
        return together

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels of each true and predicted class, (K, K)."""
        return self.table[: self.num_classes, :-1]

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each true class, (K,)."""
        return np.asarray(self.table[: self.num_classes].sum(1), np.int64)

    def iou(self) -> NDArray[np.float64]:
        """Return (K,) intersection over union; NaN for a class without truth (not measured)."""
        union = self.truth + self.counts.sum(0) - np.diag(self.counts)
        return self._ratio(np.diag(self.counts), union)

    def accuracy(self) -> NDArray[np.float64]:
        """Return (K,) share of each true class that is predicted correctly; NaN without truth."""
        return self._ratio(np.diag(self.counts), self.truth)

    def truth_share(self) -> NDArray[np.float64]:
        """Return (K,) share of each class in the labelled pixels."""
        return np.asarray(self.truth / max(1, int(self.truth.sum())), np.float64)

    def mean_iou(self, classes: Sequence[int] | None = None) -> float:
        """Return the mean IoU over `classes` (default: all), without classes that have no truth."""
        chosen = self.iou() if classes is None else self.iou()[list(classes)]
        measured = chosen[~np.isnan(chosen)]
        if not len(measured):
            return float("nan")
        # summed sequentially like the official script: pairwise summation rounds differently
        return float(np.add.accumulate(measured)[-1] / len(measured))

    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels that are predicted correctly."""
        total = int(self.truth.sum())
        return float(np.diag(self.counts).sum() / total) if total else float("nan")

    def _ratio(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = np.full(self.num_classes, np.nan)
        np.divide(part, whole, out=shares, where=self.truth > 0)
        return shares


def _permuted(table: NDArray[np.int64], new_ids: bytes) -> NDArray[np.int64]:
    moved = np.zeros(table.shape, np.int64)
    for old_id in np.flatnonzero(table.any(1)):
        moved[new_ids[old_id]] += table[old_id]
    return moved
