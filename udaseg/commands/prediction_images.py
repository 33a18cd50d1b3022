"""The images of `udaseg predict`: read ahead, looked at in batches, written behind."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.commands.inputs import Job
from udaseg.commands.masks import (
    LARGEST_PX,
    Kept,
    all_whole,
    counted,
    orientation_of,
    pages_of,
    upright,
    write_masks,
)
from udaseg.commands.prediction_look import Looker, lying_as_stored
from udaseg.commands.prediction_paths import not_an_image
from udaseg.data import IGNORE, ClassSpace, image_size, read_image
from udaseg.engine import StopSignal
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)

_AHEAD = 3
# pixels read ahead, and as many waiting to be written: 200 MB each
_AHEAD_PX = 64_000_000

Pixels = NDArray[np.uint8]


@dataclass
class Outcome:
    """What became of the inputs so far.

    Attributes:
        pixels: (256,) new labels; those of `IGNORE` are where the network abstained.
        failures: Inputs with what is wrong with them.
        kept: Inputs whose masks were there.
        seen: Inputs that are done, in whatever way.
        frames: Frames of videos that were masked.
        videos: Videos that were masked.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    failures: list[tuple[Path, str]] = field(default_factory=list)
    kept: int = 0
    seen: int = 0
    frames: int = 0
    videos: int = 0

    def failed(self, path: Path, fault: str) -> None:
        """Note a bad input and go on."""
        self.failures.append((path, fault))
        log.warning("%s", printable(fault))


@dataclass(frozen=True)
class _Read:
    """An image as stored and as the network sees it; or what is wrong; or neither: done before."""

    job: Job
    image: Pixels | None = None
    seen: Pixels | None = None
    orientation: int = 1
    fault: str | None = None


def predict_images(
    jobs: Sequence[Job], looker: Looker, outcome: Outcome, stop: StopSignal, *, resume: bool
) -> None:
    """Read, look and write side by side, until the end or a signal; `outcome` is filled."""
    with (
        WorkProgress("predict", len(jobs)) as progress,
        ThreadPoolExecutor(2) as readers,
        _Behind(looker.loaded.classes, outcome.pixels) as writer,
    ):
        batch: list[_Read] = []

        def finish() -> None:
            _look(batch, looker, writer)
            outcome.seen += len(batch)
            progress.advance(len(batch))
            batch.clear()

        for ready in _ahead(readers, jobs, looker, resume=resume):
            if ready.seen is not None:
                if batch and batch[0].seen is not None and batch[0].seen.shape != ready.seen.shape:
                    finish()
                batch.append(ready)
                if len(batch) >= looker.batch or _pixels_in(batch) > _AHEAD_PX:
                    finish()
            else:
                if ready.fault is not None:
                    outcome.failed(ready.job.image, ready.fault)
                else:
                    outcome.kept += 1
                outcome.seen += 1
                progress.advance()
            del ready  # a large image is let go of before the next is waited for
            if stop.number is not None:
                return
        if batch:
            finish()


class _Behind:
    """Context that writes masks in a thread, a few images behind, and counts their pixels."""

    def __init__(self, classes: ClassSpace, pixels: NDArray[np.int64]) -> None:
        self._classes, self._pixels = classes, pixels
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[NDArray[np.int64]]]] = deque()

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            while self._waiting and error is None:
                self._take()
        finally:
            self._thread.shutdown()

    def write(self, job: Job, image: Pixels, said: Kept) -> None:
        """Write the masks of an image soon; waits while there is much to be written."""
        writing = self._thread.submit(_write, job, image, said, self._classes)
        self._waiting.append((said.labels.size, writing))
        while len(self._waiting) > _AHEAD or sum(px for px, _ in self._waiting) > _AHEAD_PX:
            self._take()

    def _take(self) -> None:
        self._pixels += self._waiting.popleft()[1].result()


def _look(batch: Sequence[_Read], looker: Looker, writer: _Behind) -> None:
    """Look at the images of a batch and have their masks written."""
    seen = [each.seen for each in batch if each.seen is not None]
    stored = [each.image for each in batch if each.image is not None]
    # a quarter turn exchanges height and width
    sizes = [
        (image.shape[1], image.shape[0]) if each.orientation >= 5 else image.shape[:2]
        for each, image in zip(batch, stored, strict=True)
    ]
    for each, image, said in zip(batch, stored, looker.look(seen, sizes), strict=True):
        writer.write(each.job, image, lying_as_stored(said, each.orientation))


def _write(job: Job, image: Pixels, said: Kept, classes: ClassSpace) -> NDArray[np.int64]:
    """Write the masks of one image and return its pixels of each id."""
    write_masks(job.masks, image, said, classes)
    return counted(said.labels)


def _ahead(
    pool: ThreadPoolExecutor, jobs: Sequence[Job], looker: Looker, *, resume: bool
) -> Iterator[_Read]:
    """Yield images in order, a few read ahead; OpenCV decodes outside the interpreter lock.

    A large image is read when those before it are looked at, so that few are in memory.
    """
    waiting: deque[tuple[int, Future[_Read]]] = deque()
    for job in jobs:
        pixels = _pixels_of(job.image)
        while waiting and (
            len(waiting) > _AHEAD or sum(px for px, _ in waiting) + pixels > _AHEAD_PX
        ):
            yield waiting.popleft()[1].result()
        waiting.append((pixels, pool.submit(_read, job, looker, resume=resume)))
    while waiting:
        yield waiting.popleft()[1].result()


def _pixels_in(batch: Sequence[_Read]) -> int:
    return sum(each.image.size // 3 for each in batch if each.image is not None)


def _pixels_of(path: Path) -> int:
    try:
        height, width = image_size(path, max_pixels=LARGEST_PX)
    except DataError:  # it is named when it is read
        return 0
    return height * width


def _read(job: Job, looker: Looker, *, resume: bool) -> _Read:
    fault = not_an_image(job.image)
    if fault is not None:
        return _Read(job, fault=fault)
    try:
        size = image_size(job.image, max_pixels=LARGEST_PX)
        if resume and all_whole(job.masks, size):
            return _Read(job)
        image = read_image(job.image, max_pixels=LARGEST_PX)
        orientation = orientation_of(job.image)
        seen = looker.prepared(job.image, upright(image, orientation))
    except DataError as error:
        return _Read(job, fault=str(error))
    pages = pages_of(job.image)
    if pages > 1:
        log.warning(
            "%s: holds %d pages; only the first is predicted, so give the others as images",
            *(printable(str(job.image)), pages),
        )
    return _Read(job, image, seen, orientation)
