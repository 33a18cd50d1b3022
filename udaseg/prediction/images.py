"""Write the masks of images: read ahead, infer in batches, write in a thread."""

import logging
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.bit_depth import FULL_BITS, NO_DEEP_IMAGES, bits_of_values
from udaseg.data.files.images import image_header, image_orientation, image_size
from udaseg.data.files.orientation import turned_size
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.threads import Limit, OrderedWork, batches_of_one_size, read_ahead
from udaseg.display.progress import WorkProgress
from udaseg.distributed import all_gather_object
from udaseg.errors import DataError
from udaseg.inference.input_images import InputImage, read_input_image
from udaseg.inference.masks import MaskContent, count_ids, mask_content, write_masks
from udaseg.inference.options import MAX_PIXELS, MaskKind
from udaseg.inference.predictor import Predictor, PreparedImage
from udaseg.prediction.inputs import refuse_unsupported, sort_key
from udaseg.prediction.outputs import masks_intact
from udaseg.prediction.plan import Job, Plan
from udaseg.signals import StopSignal
from udaseg.text import printable

log = logging.getLogger(__name__)
# pixels that are read ahead, in a batch, or wait to be written: 200 MB each
_MAX_PX = 64_000_000
_READ_LIMIT = Limit(4, _MAX_PX)
_WRITE_LIMIT = Limit(3, _MAX_PX)
_READERS = 2


@dataclass
class Outcome:
    """Results of the inputs so far.

    Attributes:
        pixels: (256,) newly predicted pixels of each label; `IGNORE` counts abstained pixels.
        failures: Inputs that failed, with the reason.
        kept: Number of inputs whose masks existed already.
        done: Number of inputs predicted, failed or kept.
        frames: Number of frames of `videos`.
        videos: Number of videos predicted.
        peaks: The largest value of each 16-bit image that was read.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    failures: list[tuple[Path, str]] = field(default_factory=list)
    kept: int = 0
    done: int = 0
    frames: int = 0
    videos: int = 0
    peaks: list[int] = field(default_factory=list)

    def of_all_processes(self) -> "Outcome":
        """Return the results of all processes together; all of them must call it."""
        total = Outcome()
        for each in all_gather_object(self):
            total.pixels += each.pixels
            total.failures += each.failures
            total.kept += each.kept
            total.done += each.done
            total.frames += each.frames
            total.videos += each.videos
            total.peaks += each.peaks
        total.failures.sort(key=lambda failure: sort_key(str(failure[0])))
        return total

    def skip(self, path: Path, fault: str | None) -> None:
        """Count an input that has a fault, which is logged, or else whose masks exist already."""
        self.done += 1
        if fault is None:
            self.kept += 1
            return
        self.failures.append((path, fault))
        # names that are not UTF-8 must not reach the log handlers of others
        log.warning("%s", printable(fault))


class StopRequested(Exception):
    """A signal was received; what is not predicted yet is left out."""


@dataclass(frozen=True)
class _SkippedImage:
    """An image that is not predicted: it has a fault, or its masks exist already."""

    path: Path
    fault: str | None = None


def predict_images(
    plan: Plan,
    predictor: Predictor,
    outcome: Outcome,
    stop: StopSignal,
    *,
    resume: bool,
) -> None:
    """Predict the images until the end or a signal; `outcome` receives the results."""

    def after_image() -> None:
        progress.update(outcome.done)
        if stop.number is not None:  # a batch that is not complete is not predicted
            raise StopRequested

    def write(image: InputImage, content: MaskContent) -> None:
        masks = plan.job(str(image.path)).masks
        write_masks(masks, image.pixels, content, predictor.classes)
        outcome.pixels += count_ids(content.labels)

    with (
        WorkProgress("predict", len(plan)) as progress,
        closing(image_batches(plan, predictor, outcome, after_image, resume=resume)) as batches,
        OrderedWork(_WRITE_LIMIT) as writing,
        suppress(StopRequested),
    ):
        for batch in batches:
            queue_masks(batch, predictor, plan.kinds, write, writing)
            outcome.done += len(batch)
            progress.update(outcome.done)
            del batch  # free large images before waiting for the next


def warn_of_few_bits(outcome: Outcome, predictor: Predictor) -> None:
    """Warn if no value of any 16-bit image needed 16 bits and nothing says how many they use."""
    bits = bits_of_values(outcome.peaks)
    if predictor.bits is None and bits not in (NO_DEEP_IMAGES, FULL_BITS):
        log.warning(
            "no value of the %d 16-bit images is above %d, so the network saw them nearly black; "
            "if their camera uses %d bits, predict them again with --bits %d",
            len(outcome.peaks),
            2**bits - 1,
            bits,
            bits,
        )


def image_batches(
    jobs: Iterable[Job],
    predictor: Predictor,
    outcome: Outcome,
    after_image: Callable[[], None] = lambda: None,
    *,
    resume: bool = False,
) -> Generator[list[PreparedImage], None, None]:
    """Yield the images of jobs in order, read ahead in threads, those of one input size together.

    Images that are skipped are recorded in `outcome`; with `resume`, these are also those whose
    masks are intact. `after_image` is called when an image was read or skipped.
    """
    load = partial(_load_image, predictor=predictor, resume=resume)
    reading = read_ahead(load, jobs, _READ_LIMIT, pixels_of=_file_pixels, workers=_READERS)
    with closing(reading) as images:
        loaded = _without_skipped(images, outcome, after_image)
        limit = Limit(predictor.batch, _MAX_PX)
        yield from batches_of_one_size(loaded, PreparedImage.input_shape, limit, pixels_of=_pixels)


def _without_skipped(
    images: Iterable[PreparedImage | _SkippedImage],
    outcome: Outcome,
    after_image: Callable[[], None],
) -> Iterator[PreparedImage]:
    for image in images:
        if isinstance(image, PreparedImage):
            if image.image.peak is not None:
                outcome.peaks.append(image.image.peak)
            yield image
        else:
            outcome.skip(image.path, image.fault)
        del image  # free a large image before waiting for the next
        after_image()


def queue_masks(
    batch: Sequence[PreparedImage],
    predictor: Predictor,
    kinds: Collection[MaskKind],
    write: Callable[[InputImage, MaskContent], None],
    writing: OrderedWork,
) -> None:
    """Predict the images of a batch, and queue the masks of each for `write`."""
    predictions = predictor.predict(batch)
    contents = [  # pop one by one, so that each large confidence map is freed early
        mask_content(predictions.pop(0), kinds, item.image.orientation) for item in batch
    ]
    for item, content in zip(batch, contents, strict=True):
        writing.submit(partial(write, item.image, content), pixels=content.labels.size)


def _file_pixels(job: Job) -> int:
    """Return the pixels of a stored image by its header; 0 if it cannot be read."""
    try:
        return math.prod(image_size(job.image, max_pixels=MAX_PIXELS))
    except DataError:  # reported when the image is read
        return 0


def _pixels(item: PreparedImage) -> int:
    return math.prod(item.image.upright_size)


def _load_image(job: Job, *, predictor: Predictor, resume: bool) -> PreparedImage | _SkippedImage:
    try:
        refuse_unsupported(job.image)
        header = image_header(job.image, max_pixels=MAX_PIXELS, bands=predictor.bands)
        if resume:
            size = (header.height, header.width)
            upright = turned_size(size, image_orientation(job.image))
            if masks_intact(job.masks, size, upright):
                return _SkippedImage(job.image)
        prepared = predictor.prepare(read_input_image(job.image, predictor.bits, predictor.bands))
    except DataError as error:
        return _SkippedImage(job.image, str(error))
    if header.loss and predictor.bands is None:  # bands that are chosen were logged once
        log.warning("%s: %s", job.image, header.loss)
    return prepared
