"""The image of each draw as a function of the seed, so no sampling state has to be saved."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import Sample
from udaseg.data.loading.crops import CropSource

# suffixes of random keys for purposes other than the crop
_KEY_RARE, _KEY_REPLACEMENT = 1, 2


@dataclass(frozen=True)
class Draw:
    """One draw.

    Attributes:
        sample: The image.
        key: Seed of its crop.
        train_id: Class that the crop must contain; None for any crop.
    """

    sample: Sample
    key: tuple[int, int, int, int]
    train_id: int | None = None


class SamplingOrder:
    """The draws of one domain, where draw n depends only on (seed, domain, n).

    Uniform sampling visits each file once per epoch, in a new order each epoch. Class-balanced
    sampling follows the class counts within a sub-epoch. Rare-class draws are independent.

    Args:
        crops: Crops of the domain.
        seed: Seed of the run.
        domain: Number that distinguishes source and target.

    Raises:
        DataError: The index lacks the class counts that the sampling needs.
    """

    def __init__(self, crops: CropSource, *, seed: int, domain: int) -> None:
        self.crops = crops
        self._seed, self._domain = seed, domain
        balanced, rare = (crops.sampling == name for name in ("class_balanced", "rare_class"))
        self._class_present = crops.class_counts() > 0 if balanced else None
        self._rare = crops.rare_images() if rare else None
        # order of the current sub-epoch; can always be recomputed from seed and lap
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def draw(self, number: int) -> Draw:
        """Return draw `number`."""
        samples = self.crops.samples
        if self._class_present is not None:
            lap, position = divmod(number, SUB_EPOCH)
            if self._order is None or self._order[0] != lap:
                self._order = (
                    lap,
                    balanced_order(self._class_present, seed=self._seed, sub_epoch=lap),
                )
            chosen = self._order[1][position]
            return Draw(samples[chosen], self._key(lap, position))
        epoch, position = divmod(number, len(samples))
        key = self._key(epoch, position)
        if self._rare is not None:
            image, train_id = self._rare.draw(np.random.default_rng([*key, _KEY_RARE]))
            return Draw(samples[image], key, train_id)
        order = _epoch_order(self._seed, self._domain, epoch, len(samples))
        return Draw(samples[order[position]], key)

    def replacement(self, drawn: Draw, attempt: int) -> Draw:
        """Return the replacement of a draw whose image cannot be used.

        Args:
            drawn: The draw to replace.
            attempt: Number of replacements that could not be used either.
        """
        samples = self.crops.samples
        rng = np.random.default_rng([*drawn.key, _KEY_REPLACEMENT, attempt])
        if self._rare is not None and drawn.train_id is not None:
            image = self._rare.draw_image(drawn.train_id, rng)
        else:
            image = int(rng.integers(len(samples)))
        return Draw(samples[image], drawn.key, drawn.train_id)

    @property
    def classes_never_drawn(self) -> tuple[int, ...]:
        """Classes that occur, but in no image with enough pixels for rare-class sampling."""
        return () if self._rare is None else self._rare.unavailable_classes

    def _key(self, epoch: int, position: int) -> tuple[int, int, int, int]:
        return self._seed, self._domain, epoch, position


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, domain: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, domain, epoch]).permutation(count)


SUB_EPOCH = 3000
"""Draws before the counts are reset, as in the released code of SPCL."""


def balanced_order(
    present: NDArray[np.bool_], *, seed: int, sub_epoch: int, length: int = SUB_EPOCH
) -> NDArray[np.int64]:
    """Return the image order of one sub-epoch; images of rarely drawn classes come more often.

    With n_k the drawn images that hold class k and s_k = n_k / sum n, a class is drawn with a
    probability proportional to 1 / ln(1.01 + s_k), and the next image of that class is taken.

    Args:
        present: (N, K), whether image n holds class k.
        seed: Seed of the run.
        sub_epoch: Number of the sub-epoch; the order depends only on seed and lap.
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
    rng = np.random.default_rng([seed, sub_epoch])
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
