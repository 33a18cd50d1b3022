"""Write the masks of images: read ahead, infer in batches, write in a thread."""

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udaseg.data.files.images import Pixels, image_size
from udaseg.data.files.orientation import to_stored
from udaseg.data.labels.classes import IGNORE, ClassSpace, classes_to_dict
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError
from udaseg.inference.input_images import MAX_PIXELS, InputImage, read_input_image
from udaseg.inference.kinds import MaskKind
from udaseg.inference.masks import MaskContent, confidence_to_grey, count_ids, write_masks
from udaseg.inference.pipeline import (
    Limit,
    OrderedWork,
    batches_of_one_size,
    needs_tiles,
    read_ahead,
)
from udaseg.inference.predictor import Predictor
from udaseg.inference.trained_model import Model
from udaseg.prediction.inputs import Job
from udaseg.prediction.outputs import masks_intact, unsupported_reason
from udaseg.signals import StopSignal
from udaseg.text import printable

log = logging.getLogger(__name__)
# pixels that are read ahead, in a batch, or wait to be written: 200 MB each
_MAX_PX = 64_000_000
_READ_LIMIT = Limit(4, _MAX_PX)
_WRITE_LIMIT = Limit(3, _MAX_PX)
_READERS = 2
_MULTI_PAGE_SUFFIXES = (".png", ".tif", ".tiff", ".webp")


@dataclass
class Outcome:
    """Results of the inputs so far.

    Attributes:
        pixels: (256,) newly predicted pixels of each label; `IGNORE` counts abstained pixels.
        failures: Inputs that failed, with the reason.
        kept: Number of inputs whose masks existed already.
        done: Number of inputs done: predicted, failed or kept.
        frames: Number of video frames predicted.
        videos: Number of videos predicted.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    failures: list[tuple[Path, str]] = field(default_factory=list)
    kept: int = 0
    done: int = 0
    frames: int = 0
    videos: int = 0

    def add_failure(self, path: Path, fault: str) -> None:
        """Record an input that failed, and log a warning."""
        self.failures.append((path, fault))
        # names that are not UTF-8 must not reach the log handlers of others
        log.warning("%s", printable(fault))


class StopRequested(Exception):
    """A signal was received; what is not predicted yet is left out."""


@dataclass(frozen=True)
class LoadedImage:
    """An image as stored, and upright at the network's input size."""

    job: Job
    image: InputImage
    network_input: Pixels


@dataclass(frozen=True)
class SkippedImage:
    """An image that is not predicted: it has a fault, or its masks exist already."""

    job: Job
    fault: str | None = None


@dataclass(frozen=True)
class MaskPredictor:
    """Predicts what masks need.

    Attributes:
        model: The network.
        predictor: Its predictions, with confidence if a kind or `abstain` needs it.
        kinds: Requested kinds of mask.
        temperature: Temperature of the confidence; None if not calibrated.
        batch: Images of one size per batch.
    """

    model: Model
    predictor: Predictor
    kinds: Sequence[MaskKind]
    temperature: float | None
    batch: int

    def settings(self) -> dict[str, Any]:
        """Return the settings that the masks depend on, as JSON values."""
        model, options = self.model, self.predictor.options
        return {
            "checkpoint": str(model.checkpoint.resolve()),
            "step": model.step,
            "checkpoint_sha256": model.sha256,
            "flip": options.flip,
            "window": None if options.window is None else list(options.window),
            "temperature": self.temperature,
            "abstain": self.predictor.abstain,
            "classes": classes_to_dict(model.classes),
        }

    def resize(self, name: Path, upright: Pixels) -> Pixels:
        """Return an upright image resized to the network's input size.

        Raises:
            DataError: Logits are requested, but an image of this size is predicted in tiles, which
                do not return logits.
        """
        size = self.predictor.input_size(upright)
        if "logits" in self.kinds and needs_tiles(size):
            raise DataError(
                f"{name}: {size[1]}x{size[0]} pixels are predicted in tiles, without logits; "
                "leave logits out of --save"
            )
        return self.predictor.resize(upright)

    def predict(
        self, images: Sequence[Pixels], sizes: Sequence[tuple[int, int]]
    ) -> list[MaskContent]:
        """Return the predictions of prepared images of one size.

        Args:
            images: From `resize`.
            sizes: Original (height, width) of each image, upright.
        """
        predictions = self.predictor.predict(images, sizes, logits="logits" in self.kinds)
        results = []
        while predictions:  # pop one by one, so that each large confidence map is freed early
            prediction = predictions.pop(0)
            grey = None
            if "confidence" in self.kinds:
                assert prediction.confidence is not None
                grey = confidence_to_grey(prediction.confidence)
            results.append(MaskContent(prediction.labels, grey, prediction.logits))
        return results


def predict_images(
    jobs: Sequence[Job],
    predictor: MaskPredictor,
    outcome: Outcome,
    stop: StopSignal,
    *,
    resume: bool,
) -> None:
    """Predict the images until the end or a signal; `outcome` receives the results."""
    with (
        WorkProgress("predict", len(jobs)) as progress,
        closing(read_images(jobs, predictor, resume=resume)) as images,
        OrderedWork(_WRITE_LIMIT) as writing,
        suppress(StopRequested),
    ):
        loaded = _loaded_images(images, outcome, progress, stop)
        for batch in batches_of_images(loaded, predictor.batch):
            _predict_batch(batch, predictor, writing, outcome)
            outcome.done += len(batch)
            progress.advance(len(batch))
            del batch  # free large images before waiting for the next


def read_images(
    jobs: Sequence[Job], predictor: MaskPredictor, *, resume: bool = False
) -> Generator[LoadedImage | SkippedImage, None, None]:
    """Yield the images of jobs in order, read ahead in threads.

    Args:
        jobs: The images.
        predictor: Resizes them for its network.
        resume: Skip images whose masks are intact.
    """
    load = partial(_load_image, predictor=predictor, resume=resume)
    return read_ahead(load, jobs, _READ_LIMIT, pixels_of=_file_pixels, workers=_READERS)


def batches_of_images(images: Iterable[LoadedImage], batch: int) -> Iterator[list[LoadedImage]]:
    """Yield consecutive images of one network input size together, at most `batch` of them."""
    limit = Limit(batch, _MAX_PX)
    return batches_of_one_size(images, _input_shape, limit, pixels_of=_pixels)


def _loaded_images(
    images: Iterable[LoadedImage | SkippedImage],
    outcome: Outcome,
    progress: WorkProgress,
    stop: StopSignal,
) -> Iterator[LoadedImage]:
    """Yield the images to predict; record the others in `outcome`.

    Raises:
        StopRequested: A signal was received; a batch that is not complete is not predicted.
    """
    for image in images:
        if isinstance(image, LoadedImage):
            yield image
        else:
            if image.fault is None:
                outcome.kept += 1
            else:
                outcome.add_failure(image.job.image, image.fault)
            outcome.done += 1
            progress.advance()
        del image  # free a large image before waiting for the next
        if stop.number is not None:
            raise StopRequested


def _predict_batch(
    batch: Sequence[LoadedImage], predictor: MaskPredictor, writing: OrderedWork, outcome: Outcome
) -> None:
    """Predict the images of a batch and queue their masks for writing."""
    predictions = predictor.predict(
        [item.network_input for item in batch], [item.image.upright_size for item in batch]
    )
    for item, prediction in zip(batch, predictions, strict=True):
        stored = restore_orientation(prediction, item.image.orientation)
        write = partial(
            _write, item.job, item.image.pixels, stored, predictor.model.classes, outcome
        )
        writing.submit(write, pixels=stored.labels.size)


def _write(
    job: Job, image: Pixels, prediction: MaskContent, classes: ClassSpace, outcome: Outcome
) -> None:
    """Write the masks of one image and count its pixels."""
    write_masks(job.masks, image, prediction, classes)
    outcome.pixels += count_ids(prediction.labels)


def _file_pixels(job: Job) -> int:
    """Return the pixels of a stored image by its header; 0 if it cannot be read."""
    try:
        height, width = image_size(job.image, max_pixels=MAX_PIXELS)
    except DataError:  # reported when the image is read
        return 0
    return height * width


def _pixels(item: LoadedImage) -> int:
    return item.image.pixels.size // 3  # of (H, W, 3)


def _input_shape(item: LoadedImage) -> tuple[int, ...]:
    return item.network_input.shape


def _load_image(job: Job, *, predictor: MaskPredictor, resume: bool) -> LoadedImage | SkippedImage:
    fault = unsupported_reason(job.image)
    if fault is not None:
        return SkippedImage(job, fault)
    try:
        size = image_size(job.image, max_pixels=MAX_PIXELS)
        if resume and masks_intact(job.masks, size):
            return SkippedImage(job)
        image = read_input_image(job.image)
        network_input = predictor.resize(job.image, image.upright())
    except DataError as error:
        return SkippedImage(job, str(error))
    pages = _count_pages(job.image)
    if pages > 1:
        log.warning(
            "%s: has %d pages; only the first is predicted; save the others as separate images",
            job.image,
            pages,
        )
    return LoadedImage(job, image, network_input)


def _count_pages(path: Path) -> int:
    """Return the number of pages or animation frames in a file; 1 if it cannot be read."""
    if path.suffix.lower() not in _MULTI_PAGE_SUFFIXES:
        return 1
    try:
        with Image.open(path) as opened:
            return int(getattr(opened, "n_frames", 1))
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError):
        return 1


def restore_orientation(prediction: MaskContent, orientation: int) -> MaskContent:
    """Rotate the prediction of an upright image back to the orientation of the stored file."""
    if orientation == 1:
        return prediction
    stored = replace(prediction, labels=to_stored(prediction.labels, orientation))
    if prediction.grey is not None:
        stored = replace(stored, grey=to_stored(prediction.grey, orientation))
    if prediction.logits is not None:
        planes = to_stored(prediction.logits.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        stored = replace(stored, logits=np.ascontiguousarray(planes))
    return stored
