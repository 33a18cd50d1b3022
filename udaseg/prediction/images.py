"""Predict the images of `udaseg predict`: read ahead, infer in batches, write in a thread."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.images import Pixels, image_size, read_image
from udaseg.data.files.orientation import read_orientation, to_stored, to_upright
from udaseg.data.labels.classes import IGNORE, ClassSpace, classes_to_dict
from udaseg.data.loading.transforms import resize_image
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError
from udaseg.inference.pipeline import (
    Limit,
    OrderedWork,
    batches_of_one_size,
    infer_batch,
    needs_tiles,
    read_ahead,
)
from udaseg.inference.sizes import input_size, network_input_size
from udaseg.inference.tiles import TileOptions
from udaseg.inference.trained_model import Model
from udaseg.prediction.inputs import Job
from udaseg.prediction.masks import (
    MAX_PIXELS,
    MaskContent,
    confidence_to_grey,
    count_ids,
    count_pages,
    masks_intact,
    write_masks,
)
from udaseg.prediction.outputs import unsupported_reason
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
class _LoadedImage:
    """An image as stored, and upright at the network's input size."""

    job: Job
    image: Pixels
    network_input: Pixels
    orientation: int


@dataclass(frozen=True)
class _SkippedImage:
    """An image that is not predicted: it has a fault, or its masks exist already."""

    job: Job
    fault: str | None = None


@dataclass(frozen=True)
class Predictor:
    """A network with the settings that decide its prediction.

    Attributes:
        loaded: The network.
        kinds: Requested kinds of mask.
        window: Sliding window (height, width) over the network's input.
        flip: Average with the mirrored image.
        temperature: Temperature of the confidence; None if not calibrated.
        abstain: Pixels with less confidence are ignored.
        batch: Images of one size per batch.
    """

    loaded: Model
    kinds: Sequence[str]
    window: tuple[int, int] | None
    flip: bool
    temperature: float | None
    abstain: float | None
    batch: int

    def settings(self) -> dict[str, Any]:
        """Return the settings that the masks depend on, as JSON values."""
        loaded = self.loaded
        return {
            "checkpoint": str(loaded.checkpoint.resolve()),
            "step": loaded.step,
            "checkpoint_sha256": loaded.sha256,
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "temperature": self.temperature,
            "abstain": self.abstain,
            "classes": classes_to_dict(loaded.classes),
        }

    def resize_for_network(self, name: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an upright image resized to the network's input size.

        Raises:
            DataError: Logits are requested, but an image of this size is predicted in tiles, which
                do not return logits.
        """
        size = input_size((image.shape[0], image.shape[1]), network_input_size(self.loaded.recipe))
        if "logits" in self.kinds and needs_tiles(size):
            raise DataError(
                f"{name}: {size[1]}x{size[0]} pixels are predicted in tiles, without logits; "
                "leave logits out of --save"
            )
        return resize_image(image, size)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[MaskContent]:
        """Return the predictions of prepared images of one size.

        Args:
            images: From `resize_for_network`.
            sizes: Original (height, width) of each image, upright.
        """
        options = TileOptions(
            self.loaded.device,
            window=self.window,
            flip=self.flip,
            confidence="confidence" in self.kinds or self.abstain is not None,
            temperature=self.temperature or 1.0,
        )
        predictions = infer_batch(
            self.loaded.segmenter, images, sizes, options, logits="logits" in self.kinds
        )
        results = []
        while predictions:  # pop one by one, so that each large confidence map is freed early
            prediction = predictions.pop(0)
            grey = None
            if prediction.confidence is not None:
                if self.abstain is not None:
                    # `not >=`, so that NaN counts as no confidence
                    prediction.labels[~(prediction.confidence >= self.abstain)] = IGNORE
                if "confidence" in self.kinds:
                    grey = confidence_to_grey(prediction.confidence)
            results.append(MaskContent(prediction.labels, grey, prediction.logits))
        return results


def predict_images(
    jobs: Sequence[Job], predictor: Predictor, outcome: Outcome, stop: StopSignal, *, resume: bool
) -> None:
    """Predict the images until the end or a signal; `outcome` receives the results."""
    load = partial(_load_image, predictor=predictor, resume=resume)
    limit = Limit(predictor.batch, _MAX_PX)
    with (
        WorkProgress("predict", len(jobs)) as progress,
        closing(
            read_ahead(load, jobs, _READ_LIMIT, pixels_of=_file_pixels, workers=_READERS)
        ) as images,
        OrderedWork(_WRITE_LIMIT) as writing,
        suppress(StopRequested),
    ):
        loaded = _loaded_images(images, outcome, progress, stop)
        for batch in batches_of_one_size(loaded, _input_shape, limit, pixels_of=_pixels):
            _predict_batch(batch, predictor, writing, outcome)
            outcome.done += len(batch)
            progress.advance(len(batch))
            del batch  # free large images before waiting for the next


def _loaded_images(
    images: Iterable[_LoadedImage | _SkippedImage],
    outcome: Outcome,
    progress: WorkProgress,
    stop: StopSignal,
) -> Iterator[_LoadedImage]:
    """Yield the images to predict; record the others in `outcome`.

    Raises:
        StopRequested: A signal was received; a batch that is not complete is not predicted.
    """
    for image in images:
        if isinstance(image, _LoadedImage):
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
    batch: Sequence[_LoadedImage], predictor: Predictor, writing: OrderedWork, outcome: Outcome
) -> None:
    """Predict the images of a batch and queue their masks for writing."""
    # orientations 5 to 8 are rotated by 90 degrees: height and width are swapped
    sizes = [
        (item.image.shape[1], item.image.shape[0])
        if item.orientation >= 5
        else item.image.shape[:2]
        for item in batch
    ]
    predictions = predictor.predict([item.network_input for item in batch], sizes)
    for item, prediction in zip(batch, predictions, strict=True):
        stored = restore_orientation(prediction, item.orientation)
        write = partial(_write, item.job, item.image, stored, predictor.loaded.classes, outcome)
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


def _pixels(item: _LoadedImage) -> int:
    return item.image.size // 3  # of (H, W, 3)


def _input_shape(item: _LoadedImage) -> tuple[int, ...]:
    return item.network_input.shape


def _load_image(job: Job, *, predictor: Predictor, resume: bool) -> _LoadedImage | _SkippedImage:
    fault = unsupported_reason(job.image)
    if fault is not None:
        return _SkippedImage(job, fault)
    try:
        size = image_size(job.image, max_pixels=MAX_PIXELS)
        if resume and masks_intact(job.masks, size):
            return _SkippedImage(job)
        image = read_image(job.image, max_pixels=MAX_PIXELS)
        orientation = read_orientation(job.image)
        network_input = predictor.resize_for_network(job.image, to_upright(image, orientation))
    except DataError as error:
        return _SkippedImage(job, str(error))
    pages = count_pages(job.image)
    if pages > 1:
        log.warning(
            "%s: has %d pages; only the first is predicted; save the others as separate images",
            job.image,
            pages,
        )
    return _LoadedImage(job, image, network_input, orientation)


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
