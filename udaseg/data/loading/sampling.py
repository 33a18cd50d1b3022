"""The image of each draw as a function of the seed, so no sampling state has to be saved."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import Sample
from udaseg.data.loading.crops import CropSource

# suffixes of random keys for purposes other than the crop
_KEY_RARE, _KEY_REPLACEMENT, _KEY_TURN = 1, 2, 3

_FIRST_PART = 2
"""Number of the domain of the first of several data sets; source and target have 0 and 1."""

SUB_EPOCH = 3000
"""Draws before the counts are reset, as in the released code of SPCL."""


@dataclass(frozen=True)
class Draw:
    """An image, the seed of its crop, and the class that the crop must contain, if any."""

    sample: Sample
    key: tuple[int, int, int, int]
    train_id: int | None = None


class SamplingOrder:
    """The draws of one domain, where draw n depends only on (seed, domain, n).

    Uniform sampling visits each file once per epoch, in a new order each epoch. Class-balanced
    sampling follows the class counts within a sub-epoch. Rare-class draws are independent.

    The number of the domain distinguishes source and target.
    """

    def __init__(self, crops: CropSource, *, seed: int, domain: int) -> None:
        self.crops = crops
        self._seed, self._domain = seed, domain
        balanced, rare = crops.sampling == "class_balanced", crops.sampling == "rare_class"
        self._class_present = crops.class_counts() > 0 if balanced else None
        self._rare = crops.rare_images() if rare else None
        self.classes_never_drawn = () if self._rare is None else self._rare.unavailable_classes
        # the last epoch that was asked for, and its order
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def draw(self, number: int) -> Draw:
        """Return draw `number`."""
        samples = self.crops.samples
        length = len(samples) if self._class_present is None else SUB_EPOCH
        epoch, position = divmod(number, length)
        key = (self._seed, self._domain, epoch, position)
        if self._rare is not None:
            image, train_id = self._rare.draw(np.random.default_rng([*key, _KEY_RARE]))
            return Draw(samples[image], key, train_id)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        return Draw(samples[self._order[position]], key)

    @property
    def classes_drawn(self) -> frozenset[int]:
        """The classes that rare-class sampling draws."""
        return frozenset() if self._rare is None else self._rare.classes

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._class_present is not None:
            return balanced_order(self._class_present, seed=self._seed, sub_epoch=epoch)
        rng = np.random.default_rng([self._seed, self._domain, epoch])
        return rng.permutation(len(self.crops.samples))

    def replacement(self, draw: Draw, attempt: int) -> Draw:
        """Return the replacement of a draw whose image cannot be used, after `attempt` others."""
        samples = self.crops.samples
        rng = np.random.default_rng([*draw.key, _KEY_REPLACEMENT, attempt])
        if self._rare is not None and draw.train_id is not None:
            return replace(draw, sample=samples[self._rare.draw_image(draw.train_id, rng)])
        return replace(draw, sample=samples[rng.integers(len(samples))])


class MixedOrder:
    """The draws of several data sets, each with its share of every turn.

    A turn has as many draws as the shares add up to, in an order of its own. The draws of each set
    are those of `SamplingOrder` for that set alone, with its own class counts.
    """

    def __init__(self, crops: CropSource, *, seed: int, domain: int) -> None:
        self.crops = crops
        self._key, self._shares = (seed, domain), crops.shares
        self._orders = [
            SamplingOrder(part, seed=seed, domain=_FIRST_PART + number)
            for number, part in enumerate(crops.of_each_part())
        ]
        drawn = frozenset().union(*(order.classes_drawn for order in self._orders))
        never = {each for order in self._orders for each in order.classes_never_drawn}
        self.classes_never_drawn = tuple(sorted(never - drawn))

    def draw(self, number: int) -> Draw:
        """Return draw `number`."""
        turn, position = divmod(number, sum(self._shares))
        rng = np.random.default_rng([*self._key, turn, _KEY_TURN])
        parts = rng.permutation(np.repeat(np.arange(len(self._shares)), self._shares))
        part = int(parts[position])
        earlier = int((parts[:position] == part).sum())
        return self._orders[part].draw(turn * self._shares[part] + earlier)

    def replacement(self, draw: Draw, attempt: int) -> Draw:
        """Return a replacement of the same data set; see `SamplingOrder.replacement`."""
        return self._orders[draw.sample.part].replacement(draw, attempt)


def sampling_order(crops: CropSource, *, seed: int, domain: int) -> SamplingOrder | MixedOrder:
    """Return the draws of a domain."""
    order = MixedOrder if crops.shares else SamplingOrder
    return order(crops, seed=seed, domain=domain)


def balanced_order(
    present: NDArray[np.bool_], *, seed: int, sub_epoch: int, length: int = SUB_EPOCH
) -> NDArray[np.int64]:
    """Return the image order of one sub-epoch; images of rarely drawn classes come more often.

    With n_k the drawn images that hold class k and s_k = n_k / sum n, a class is drawn with a
    probability proportional to 1 / ln(1.01 + s_k), and the next image of that class is taken.

    Args:
        present: (N, K), whether image n holds class k.
        seed: Seed of the run.
        sub_epoch: Its number; the order depends only on it and the seed.
        length: Number of draws.

    Reference:
        Xie et al., SPCL (2021), released code. Counts start at 0 in each sub-epoch.
    """
    classes = np.flatnonzero(present.any(0))
    if classes.size == 0:
        raise ValueError("no image holds a class")
    rng = np.random.default_rng([seed, sub_epoch])
    images = [itertools.cycle(rng.permutation(np.flatnonzero(present[:, k]))) for k in classes]
    present_classes = present[:, classes]
    counts = np.zeros(len(classes), np.int64)
    order = np.empty(length, np.int64)
    for draw in range(length):
        share = counts / max(1, counts.sum())
        cumulative = np.cumsum(1 / np.log(1.01 + share))
        mark = rng.random() * cumulative[-1]
        drawn_class = min(int(np.searchsorted(cumulative, mark)), len(classes) - 1)
        order[draw] = next(images[drawn_class])
        counts += present_classes[order[draw]]
    return order
