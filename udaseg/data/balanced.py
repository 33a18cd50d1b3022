"""Class-balanced order of source images, from the classes that each image holds."""

import numpy as np
from numpy.typing import NDArray

SUB_EPOCH = 3000
"""Draws before the counts start anew, as SPCL was released."""


def balanced_order(
    present: NDArray[np.bool_], *, seed: int, lap: int, length: int = SUB_EPOCH
) -> NDArray[np.int64]:
    """Return the images of one sub-epoch, those of rarely drawn classes more often.

    With n_k the drawn images that hold class k and s_k = n_k / sum n, a class is drawn with a
    probability proportional to 1 / ln(1.01 + s_k), and the next image of that class is taken.

    Args:
        present: (N, K), whether image n holds class k.
        seed: Of the run.
        lap: Number of the sub-epoch; the order hangs on seed and lap alone.
        length: Draws.

    Returns:
        (length,) indices of images.

    Raises:
        ValueError: No image holds any class.

    Reference:
        Xie et al., SPCL (2021), released code. Counts begin at 0 and are fresh in each sub-epoch.
    """
    classes = np.flatnonzero(present.any(0))
    if classes.size == 0:
        raise ValueError("no image holds a class")
    rng = np.random.default_rng([seed, lap])
    files = [rng.permutation(np.flatnonzero(present[:, number])) for number in classes]
    holds = present[:, classes]
    next_file = np.zeros(len(classes), np.int64)
    counts = np.zeros(len(classes), np.int64)
    order = np.empty(length, np.int64)
    for draw in range(length):
        share = counts / max(1, counts.sum())
        chance = 1 / np.log(1.01 + share)
        ladder = np.cumsum(chance)
        chosen = min(int(np.searchsorted(ladder, rng.random() * ladder[-1])), len(classes) - 1)
        of_class = files[chosen]
        image = of_class[next_file[chosen] % len(of_class)]
        next_file[chosen] += 1
        counts += holds[image]
        order[draw] = image
    return order
