"""Which image is drawn at which number: functions of the seed, so that nothing has to be saved."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udaseg.data.balanced import SUB_EPOCH, balanced_order
from udaseg.data.crops import Crops
from udaseg.data.index import Sample

# last words of the keys of draws that are no crops
_RARE, _INSTEAD = 1, 2


@dataclass(frozen=True)
class Drawn:
    """One draw.

    Attributes:
        sample: The image.
        key: Seeds its crop.
        train_id: The class that the crop must show; None shows what comes.
    """

    sample: Sample
    key: tuple[int, int, int, int]
    train_id: int | None = None


class Draws:
    """The draws of one domain: draw n is made from (seed, domain, n) alone.

    Uniform draws visit each file once an epoch, in an order of its own for each epoch;
    class-balanced ones go by the counts within a sub-epoch; rare-class ones are independent.

    Args:
        crops: Of the domain.
        seed: Of the run.
        domain: A number of its own for source and for target.

    Raises:
        DataError: The index lacks the counts that the sampling needs.
    """

    def __init__(self, crops: Crops, *, seed: int, domain: int) -> None:
        self.crops = crops
        self._seed, self._domain = seed, domain
        balanced, rare = (crops.sampling == word for word in ("class_balanced", "rare_class"))
        self._present = crops.counts() > 0 if balanced else None
        self._rare = crops.rare_images() if rare else None
        # the order of the sub-epoch at hand; made again from seed and lap wherever it is needed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def at(self, number: int) -> Drawn:
        """Return draw `number`."""
        samples = self.crops.samples
        if self._present is not None:
            lap, position = divmod(number, SUB_EPOCH)
            if self._order is None or self._order[0] != lap:
                self._order = (lap, balanced_order(self._present, seed=self._seed, lap=lap))
            chosen = self._order[1][position]
            return Drawn(samples[chosen], self._key(lap, position))
        epoch, position = divmod(number, len(samples))
        key = self._key(epoch, position)
        if self._rare is not None:
            image, train_id = self._rare.draw(np.random.default_rng([*key, _RARE]))
            return Drawn(samples[image], key, train_id)
        order = _epoch_order(self._seed, self._domain, epoch, len(samples))
        return Drawn(samples[order[position]], key)

    def instead(self, drawn: Drawn, attempt: int) -> Drawn:
        """Return what takes the place of a draw whose image cannot be used.

        Args:
            drawn: The draw.
            attempt: How many in its place could not be used either.
        """
        samples = self.crops.samples
        rng = np.random.default_rng([*drawn.key, _INSTEAD, attempt])
        if self._rare is not None and drawn.train_id is not None:
            image = self._rare.draw_with(drawn.train_id, rng)
        else:
            image = int(rng.integers(len(samples)))
        return Drawn(samples[image], drawn.key, drawn.train_id)

    @property
    def never_drawn(self) -> tuple[int, ...]:
        """Classes that occur, but in no image often enough to be drawn for them."""
        return () if self._rare is None else self._rare.left_out

    def _key(self, epoch: int, position: int) -> tuple[int, int, int, int]:
        return self._seed, self._domain, epoch, position


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, domain: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, domain, epoch]).permutation(count)
