"""Predict the images of `udaseg predict`: read ahead, infer in batches, write in a thread."""

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
# limit of pixels read ahead, and of pixels waiting to be written: 200 MB each
_AHEAD_PX = 64_000_000

Pixels = NDArray[np.uint8]


@dataclass
class Outcome:
    """Results of the inputs so far.

    Attributes:
        pixels: (256,) newly predicted pixels of each label; `IGNORE` counts abstained pixels.
        failures: Inputs that failed, with the reason.
        kept: Number of inputs whose masks existed already.
        seen: Number of inputs done: predicted, failed or kept.
        frames: Number of video frames predicted.
        videos: Number of videos predicted.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    failures: list[tuple[Path, str]] = field(default_factory=list)
    kept: int = 0
    seen: int = 0
    frames: int = 0
    videos: int = 0

    def failed(self, path: Path, fault: str) -> None:
        """Record an input that failed, and log a warning."""
        self.failures.append((path, fault))
        log.warning("%s", printable(fault))


@dataclass(frozen=True)
class _Read:
    """An image as stored and as network input; with a fault; or with neither if already done."""

    job: Job
    image: Pixels | None = None
    seen: Pixels | None = None
    orientation: int = 1
    fault: str | None = None


def predict_images(
    jobs: Sequence[Job], predictor: Looker, outcome: Outcome, stop: StopSignal, *, resume: bool
) -> None:
    """Predict the images until the end or a signal; `outcome` receives the results."""
    with (
        WorkProgress("predict", len(jobs)) as progress,
        ThreadPoolExecutor(2) as readers,
        _Behind(predictor.loaded.classes, outcome.pixels) as writer,
    ):
        batch: list[_Read] = []

        def flush() -> None:
            _look(batch, predictor, writer)
            outcome.seen += len(batch)
            progress.advance(len(batch))
            batch.clear()

        for item in _ahead(readers, jobs, predictor, resume=resume):
            if item.seen is not None:
                if batch and batch[0].seen is not None and batch[0].seen.shape != item.seen.shape:
                    flush()
                batch.append(item)
                if len(batch) >= predictor.batch or _pixels_in(batch) > _AHEAD_PX:
                    flush()
            else:
                if item.fault is not None:
                    outcome.failed(item.job.image, item.fault)
                else:
                    outcome.kept += 1
                outcome.seen += 1
                progress.advance()
            del item  # free a large image before waiting for the next
            if stop.number is not None:
                return
        if batch:
            flush()


class _Behind:
    """Context that writes masks in a background thread and counts their pixels."""

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

    def write(self, job: Job, image: Pixels, prediction: Kept) -> None:
        """Queue the masks of an image for writing; block while the queue is full."""
        future = self._thread.submit(_write, job, image, prediction, self._classes)
        self._waiting.append((prediction.labels.size, future))
        while len(self._waiting) > _AHEAD or sum(px for px, _ in self._waiting) > _AHEAD_PX:
            self._take()

    def _take(self) -> None:
        self._pixels += self._waiting.popleft()[1].result()


def _look(batch: Sequence[_Read], predictor: Looker, writer: _Behind) -> None:
    """Predict the images of a batch and queue their masks for writing."""
    inputs = [item.seen for item in batch if item.seen is not None]
    images = [item.image for item in batch if item.image is not None]
    # orientations 5 to 8 are rotated by 90 degrees: height and width are swapped
    sizes = [
        (image.shape[1], image.shape[0]) if item.orientation >= 5 else image.shape[:2]
        for item, image in zip(batch, images, strict=True)
    ]
    for item, image, prediction in zip(batch, images, predictor.look(inputs, sizes), strict=True):
        writer.write(item.job, image, lying_as_stored(prediction, item.orientation))


def _write(job: Job, image: Pixels, prediction: Kept, classes: ClassSpace) -> NDArray[np.int64]:
    """Write the masks of one image and return its pixel count per id."""
    write_masks(job.masks, image, prediction, classes)
    return counted(prediction.labels)


def _ahead(
    pool: ThreadPoolExecutor, jobs: Sequence[Job], predictor: Looker, *, resume: bool
) -> Iterator[_Read]:
    """Yield images in order, a few read ahead; OpenCV decodes without the interpreter lock.

    A large image is read only once the images before it are predicted, to limit memory.
    """
    waiting: deque[tuple[int, Future[_Read]]] = deque()
    for job in jobs:
        pixels = _pixels_of(job.image)
        while waiting and (
            len(waiting) > _AHEAD or sum(px for px, _ in waiting) + pixels > _AHEAD_PX
        ):
            yield waiting.popleft()[1].result()
        waiting.append((pixels, pool.submit(_read, job, predictor, resume=resume)))
    while waiting:
        yield waiting.popleft()[1].result()


def _pixels_in(batch: Sequence[_Read]) -> int:
    return sum(item.image.size // 3 for item in batch if item.image is not None)


def _pixels_of(path: Path) -> int:
    try:
        height, width = image_size(path, max_pixels=LARGEST_PX)
    except DataError:  # reported when the image is read
        return 0
    return height * width


def _read(job: Job, predictor: Looker, *, resume: bool) -> _Read:
    fault = not_an_image(job.image)
    if fault is not None:
        return _Read(job, fault=fault)
    try:
        size = image_size(job.image, max_pixels=LARGEST_PX)
        if resume and all_whole(job.masks, size):
            return _Read(job)
        image = read_image(job.image, max_pixels=LARGEST_PX)
        orientation = orientation_of(job.image)
        network_input = predictor.prepared(job.image, upright(image, orientation))
    except DataError as error:
        return _Read(job, fault=str(error))
    pages = pages_of(job.image)
    if pages > 1:
        log.warning(
            "%s: has %d pages; only the first is predicted; save the others as separate images",
            printable(str(job.image)),
            pages,
        )
    return _Read(job, image, network_input, orientation)
