"""Class-balanced order of source images, computed from the classes present in each image."""

import numpy as np
from numpy.typing import NDArray

SUB_EPOCH = 3000
"""Draws before the counts are reset, as in the released code of SPCL."""


def balanced_order(
    present: NDArray[np.bool_], *, seed: int, lap: int, length: int = SUB_EPOCH
) -> NDArray[np.int64]:
    """Return the image order of one sub-epoch; images of rarely drawn classes come more often.

    With n_k the drawn images that hold class k and s_k = n_k / sum n, a class is drawn with a
    probability proportional to 1 / ln(1.01 + s_k), and the next image of that class is taken.

    Args:
        present: (N, K), whether image n holds class k.
        seed: Seed of the run.
        lap: Number of the sub-epoch; the order depends only on seed and lap.
        length: Number of draws.

    Returns:
        (length,) image indices.

    Raises:
        ValueError: No image holds any class.

    Reference:
        Xie et al., SPCL (2021), released code. Counts start at 0 in each sub-epoch.
    """
    classes = np.flatnonzero(present.any(0))
    if classes.size == 0:
        raise ValueError("no image holds a class")
    rng = np.random.default_rng([seed, lap])
    files = [rng.permutation(np.flatnonzero(present[:, number])) for number in classes]
    present_classes = present[:, classes]
    next_file = np.zeros(len(classes), np.int64)
    counts = np.zeros(len(classes), np.int64)
    order = np.empty(length, np.int64)
    for draw in range(length):
        share = counts / max(1, counts.sum())
        weight = 1 / np.log(1.01 + share)
        cumulative = np.cumsum(weight)
        drawn_class = min(
            int(np.searchsorted(cumulative, rng.random() * cumulative[-1])), len(classes) - 1
        )
        class_files = files[drawn_class]
        image = class_files[next_file[drawn_class] % len(class_files)]
        next_file[drawn_class] += 1
        counts += present_classes[image]
        order[draw] = image
    return order
