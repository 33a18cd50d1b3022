"""Paired bootstrap over images: how far a score depends on which images were scored."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udaseg.runs.image_counts import ImageCounts

RESAMPLES = 2000
_AT_ONCE = 100  # so that memory does not grow with the number of resamples
_TAILS = (2.5, 97.5)


def resampled_iou(groups: Sequence[Sequence[ImageCounts]]) -> list[NDArray[np.float64]]:
    """Return for each group the (RESAMPLES, K) IoU of its runs, averaged over the runs.

    A resample draws as many images as there are, with replacement, and pools their pixels. All
    runs of all groups see the same images in it. The draws are the same in each call.

    Args:
        groups: Runs on the same images; within a group, of the same classes.
    """
    images = len(groups[0][0].images)
    rng = np.random.default_rng(0)
    drawn: list[list[NDArray[np.float64]]] = [[] for _ in groups]
    for _ in range(RESAMPLES // _AT_ONCE):
        times = rng.multinomial(images, np.full(images, 1 / images), _AT_ONCE).astype(np.float64)
        for parts, runs in zip(drawn, groups, strict=True):
            parts.append(np.mean([run.iou(times) for run in runs], 0))
    return [np.concatenate(parts) for parts in drawn]


def mean_of_classes(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (R,) mean over the measured classes of (R, K) IoUs; NaN where none is."""
    measured = ~np.isnan(iou)
    count = measured.sum(1)
    mean = np.full(len(iou), np.nan)
    np.divide(np.where(measured, iou, 0).sum(1), count, out=mean, where=count > 0)
    return mean


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of what is measured; None if nothing is."""
    measured = values[~np.isnan(values)]
    if not len(measured):
        return None
    low, high = np.percentile(measured, _TAILS).tolist()
    return low, high
