"""Count a confusion matrix in exact integers, and compute the scores from it."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from udaseg.distributed import all_reduce_sum

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
        counts: (K, K) int64; rows are the truth, columns the prediction.
        abstained: (K,) int64; pixels of each true class predicted as none of the K.
        outside: (E, K) int64; predictions where the truth is an outside class.
        abstained_outside: (E,) int64; pixels of each outside class predicted as none of the K.
    """

    def __init__(self, num_classes: int, *, ignore: int = 255, num_outside: int = 0) -> None:
        if not 1 <= num_classes <= num_classes + num_outside < _NUM_IDS:
            raise ValueError(
                "a confusion matrix has 1 to 255 classes, got "
                f"{num_classes}" + (f" and {num_outside} outside" if num_outside else "")
            )
        self.num_classes = num_classes
        self.ignore = ignore
        self.outside: NDArray[np.int64] = np.zeros((num_outside, num_classes), np.int64)
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self.abstained: NDArray[np.int64] = np.zeros(num_classes, np.int64)
        self.abstained_outside: NDArray[np.int64] = np.zeros(num_outside, np.int64)

    def update(
        self,
        prediction: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        truth_map: bytes | None = None,
        prediction_map: bytes | None = None,
    ) -> None:
        """Count one image.

        Args:
            prediction: (H, W) uint8 class ids; a value that is not a class is an abstention.
            truth: (H, W) uint8 class ids with `ignore`.
            truth_map: 256 class ids, for a truth with another class order: the value v stands for
                `truth_map[v]`. The counts are permuted, not the pixels.
            prediction_map: The same for the prediction.

        Raises:
            ValueError: Shapes differ, or the truth has an id that is not a class; nothing is
                counted.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction {prediction.shape} but truth {truth.shape}")
        planes = [np.ascontiguousarray(plane).reshape(1, -1) for plane in (truth, prediction)]
        span = [0, _NUM_IDS, 0, _NUM_IDS]
        table = np.zeros((_NUM_IDS, _NUM_IDS), np.int64)
        for start in range(0, truth.size, _MAX_EXACT_PIXELS):
            parts = [plane[:, start : start + _MAX_EXACT_PIXELS] for plane in planes]
            histogram = cv2.calcHist(parts, [0, 1], None, [_NUM_IDS, _NUM_IDS], span)
            # the shape differs between OpenCV 4 and 5
            table += np.asarray(histogram).reshape(_NUM_IDS, _NUM_IDS).astype(np.int64)
        if truth_map is not None:
            table = self._permuted(table, truth_map)
        if prediction_map is not None:
            table = self._permuted(table.T, prediction_map).T
        labelled = np.delete(table, self.ignore, axis=0)
        stop = self.num_classes + len(self.outside)
        unknown = labelled[stop:].sum()
        if unknown:
            raise ValueError(f"{unknown} pixels of the truth are of unknown classes")
        inside = table[: self.num_classes]
        self.counts += inside[:, : self.num_classes]
        self.abstained += inside[:, self.num_classes :].sum(1)
        outside = table[self.num_classes : stop]
        self.outside += outside[:, : self.num_classes]
        self.abstained_outside += outside[:, self.num_classes :].sum(1)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix over the same classes."""
        if other.outside.shape != self.outside.shape:
            raise ValueError(
                f"cannot add counts of {other.num_classes} classes to counts of {self.num_classes}"
            )
        self.counts += other.counts
        self.abstained += other.abstained
        self.outside += other.outside
        self.abstained_outside += other.abstained_outside

    def with_outside(self, chosen: Sequence[int]) -> "ConfusionMatrix":
        """Return a matrix with these outside classes as classes that were never predicted."""
        whole = ConfusionMatrix(self.num_classes + len(chosen), ignore=self.ignore)
        whole.counts[: self.num_classes, : self.num_classes] = self.counts
        whole.counts[self.num_classes :, : self.num_classes] = self.outside[list(chosen)]
        whole.abstained[: self.num_classes] = self.abstained
        whole.abstained[self.num_classes :] = self.abstained_outside[list(chosen)]
        return whole

    def without_truth(self, classes: Sequence[int]) -> "ConfusionMatrix":
        """Return a matrix that ignores the pixels of these true classes."""
        part = ConfusionMatrix(self.num_classes, ignore=self.ignore, num_outside=len(self.outside))
        part.counts, part.abstained = self.counts.copy(), self.abstained.copy()
        part.counts[list(classes)] = 0
        part.abstained[list(classes)] = 0
        part.outside = self.outside.copy()
        part.abstained_outside = self.abstained_outside.copy()
        return part

    def all_reduce_sum(self, device: torch.device) -> "ConfusionMatrix":
        """Return the counts summed over all processes; they are exchanged through `device`."""
        rows = np.concatenate([self.counts, self.outside])
        rows = np.column_stack([rows, [*self.abstained, *self.abstained_outside]])
        total = all_reduce_sum(torch.from_numpy(rows).to(device)).cpu().numpy()
        together = ConfusionMatrix(
            self.num_classes, ignore=self.ignore, num_outside=len(self.outside)
        )
        inside = slice(self.num_classes)
        together.counts, together.outside = (
            total[inside, inside].copy(),
            total[inside.stop :, inside].copy(),
        )
        together.abstained = total[inside, inside.stop].copy()
        together.abstained_outside = total[inside.stop :, inside.stop].copy()
        return together

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each true class, (K,)."""
        return np.asarray(self.counts.sum(1) + self.abstained, np.int64)

    @property
    def truth_outside(self) -> NDArray[np.int64]:
        """Pixels of each true class that cannot be predicted, (E,)."""
        return np.asarray(self.outside.sum(1) + self.abstained_outside, np.int64)

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

    @staticmethod
    def _permuted(table: NDArray[np.int64], new_ids: bytes) -> NDArray[np.int64]:
        if len(new_ids) != _NUM_IDS:
            raise ValueError(f"a map of ids has {_NUM_IDS} entries, got {len(new_ids)}")
        moved = np.zeros(table.shape, np.int64)
        for old_id in np.flatnonzero(table.any(1)):
            moved[new_ids[old_id]] += table[old_id]
        return moved

    def _ratio(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = np.full(self.num_classes, np.nan)
        np.divide(part, whole, out=shares, where=self.truth > 0)
        return shares
