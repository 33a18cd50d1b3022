"""Predict the images of `udaseg predict`: read ahead, infer in batches, write in a thread."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from udaseg.inference.loaded_run import LoadedModel
from udaseg.inference.pipeline import infer_batch, needs_tiles
from udaseg.inference.sizes import input_size, network_input_size
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
from udaseg.runs.calibration_file import read_temperature
from udaseg.signals import StopSignal
from udaseg.text import printable

log = logging.getLogger(__name__)
_MAX_QUEUED = 3

# limit of pixels read ahead, and of pixels waiting to be written: 200 MB each
_MAX_QUEUED_PX = 64_000_000


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
        log.warning("%s", printable(fault))


@dataclass(frozen=True)
class _LoadedImage:
    """An image as stored and as network input; with a fault; or with neither if already done."""

    job: Job
    image: Pixels | None = None
    network_input: Pixels | None = None
    orientation: int = 1
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

    loaded: LoadedModel
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
            images: From `prepared`.
            sizes: Original (height, width) of each image, upright.
        """
        predictions = infer_batch(
            self.loaded.segmenter,
            images,
            sizes,
            device=self.loaded.device,
            window=self.window,
            flip=self.flip,
            confidence="confidence" in self.kinds or self.abstain is not None,
            logits="logits" in self.kinds,
            temperature=self.temperature or 1.0,
        )
        results = []
        while predictions:  # pop one by one, so that each large confidence map is freed early
            prediction = predictions.pop(0)
            gray = None
            if prediction.confidence is not None:
                if self.abstain is not None:
                    # `not >=`, so that NaN counts as no confidence
                    prediction.labels[~(prediction.confidence >= self.abstain)] = IGNORE
                gray = (
                    confidence_to_grey(prediction.confidence)
                    if "confidence" in self.kinds
                    else None
                )
            results.append(MaskContent(prediction.labels, gray, prediction.logits))
        return results


def predict_images(
    jobs: Sequence[Job], predictor: Predictor, outcome: Outcome, stop: StopSignal, *, resume: bool
) -> None:
    """Predict the images until the end or a signal; `outcome` receives the results."""
    with (
        WorkProgress("predict", len(jobs)) as progress,
        ThreadPoolExecutor(2) as readers,
        _MaskWriter(predictor.loaded.classes, outcome.pixels) as writer,
    ):
        batch: list[_LoadedImage] = []

        def flush() -> None:
            _predict_batch(batch, predictor, writer)
            outcome.done += len(batch)
            progress.advance(len(batch))
            batch.clear()

        for item in _read_ahead(readers, jobs, predictor, resume=resume):
            if item.network_input is not None:
                if (
                    batch
                    and batch[0].network_input is not None
                    and batch[0].network_input.shape != item.network_input.shape
                ):
                    flush()
                batch.append(item)
                if len(batch) >= predictor.batch or _batch_pixels(batch) > _MAX_QUEUED_PX:
                    flush()
            else:
                if item.fault is not None:
                    outcome.add_failure(item.job.image, item.fault)
                else:
                    outcome.kept += 1
                outcome.done += 1
                progress.advance()
            del item  # free a large image before waiting for the next
            if stop.number is not None:
                return
        if batch:
            flush()


class _MaskWriter:
    """Context that writes masks in a background thread and counts their pixels."""

    def __init__(self, classes: ClassSpace, pixels: NDArray[np.int64]) -> None:
        self._classes, self._pixels = classes, pixels
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[tuple[int, Future[NDArray[np.int64]]]] = deque()

    def __enter__(self) -> "_MaskWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            while self._pending and error is None:
                self._collect()
        finally:
            self._thread.shutdown()

    def write(self, job: Job, image: Pixels, prediction: MaskContent) -> None:
        """Queue the masks of an image for writing; block while the queue is full."""
        future = self._thread.submit(_write, job, image, prediction, self._classes)
        self._pending.append((prediction.labels.size, future))
        while (
            len(self._pending) > _MAX_QUEUED or sum(px for px, _ in self._pending) > _MAX_QUEUED_PX
        ):
            self._collect()

    def _collect(self) -> None:
        self._pixels += self._pending.popleft()[1].result()


def _predict_batch(
    batch: Sequence[_LoadedImage], predictor: Predictor, writer: _MaskWriter
) -> None:
    """Predict the images of a batch and queue their masks for writing."""
    inputs = [item.network_input for item in batch if item.network_input is not None]
    images = [item.image for item in batch if item.image is not None]
    # orientations 5 to 8 are rotated by 90 degrees: height and width are swapped
    sizes = [
        (image.shape[1], image.shape[0]) if item.orientation >= 5 else image.shape[:2]
        for item, image in zip(batch, images, strict=True)
    ]
    for item, image, prediction in zip(
        batch, images, predictor.predict(inputs, sizes), strict=True
    ):
        writer.write(item.job, image, restore_orientation(prediction, item.orientation))


def _write(
    job: Job, image: Pixels, prediction: MaskContent, classes: ClassSpace
) -> NDArray[np.int64]:
    """Write the masks of one image and return its pixel count per id."""
    write_masks(job.masks, image, prediction, classes)
    return count_ids(prediction.labels)


def _read_ahead(
    pool: ThreadPoolExecutor, jobs: Sequence[Job], predictor: Predictor, *, resume: bool
) -> Iterator[_LoadedImage]:
    """Yield images in order, a few read ahead; OpenCV decodes without the interpreter lock.

    A large image is read only once the images before it are predicted, to limit memory.
    """
    waiting: deque[tuple[int, Future[_LoadedImage]]] = deque()
    for job in jobs:
        pixels = _image_pixels(job.image)
        while waiting and (
            len(waiting) > _MAX_QUEUED or sum(px for px, _ in waiting) + pixels > _MAX_QUEUED_PX
        ):
            yield waiting.popleft()[1].result()
        waiting.append((pixels, pool.submit(_load_image, job, predictor, resume=resume)))
    while waiting:
        yield waiting.popleft()[1].result()


def _batch_pixels(batch: Sequence[_LoadedImage]) -> int:
    return sum(item.image.size // 3 for item in batch if item.image is not None)


def _image_pixels(path: Path) -> int:
    try:
        height, width = image_size(path, max_pixels=MAX_PIXELS)
    except DataError:  # reported when the image is read
        return 0
    return height * width


def _load_image(job: Job, predictor: Predictor, *, resume: bool) -> _LoadedImage:
    fault = unsupported_reason(job.image)
    if fault is not None:
        return _LoadedImage(job, fault=fault)
    try:
        size = image_size(job.image, max_pixels=MAX_PIXELS)
        if resume and masks_intact(job.masks, size):
            return _LoadedImage(job)
        image = read_image(job.image, max_pixels=MAX_PIXELS)
        orientation = read_orientation(job.image)
        network_input = predictor.resize_for_network(job.image, to_upright(image, orientation))
    except DataError as error:
        return _LoadedImage(job, fault=str(error))
    pages = count_pages(job.image)
    if pages > 1:
        log.warning(
            "%s: has %d pages; only the first is predicted; save the others as separate images",
            printable(str(job.image)),
            pages,
        )
    return _LoadedImage(job, image, network_input, orientation)


_GPU_BATCH = 8


def build_predictor(
    loaded: LoadedModel,
    kinds: Sequence[str],
    *,
    weights: str,
    window: tuple[int, int] | None,
    flip: bool,
    abstain: float | None,
    calibrated: bool,
    batch: int | None,
) -> Predictor:
    """Return the predictor; the temperature is read only if confidence is needed.

    Raises:
        DataError: The run's calibration is damaged, or belongs to another checkpoint.
    """
    needs_confidence = "confidence" in kinds or abstain is not None
    temperature = None
    if needs_confidence and calibrated:
        temperature = read_temperature(loaded.checkpoint, weights)
    if batch is None:
        batch = _GPU_BATCH if loaded.device.type == "cuda" else 1
    return Predictor(loaded, kinds, window, flip, temperature, abstain, batch)


def restore_orientation(prediction: MaskContent, orientation: int) -> MaskContent:
    """Rotate the prediction of an upright image back to the orientation of the stored file."""
    if orientation == 1:
        return prediction
    turned = replace(prediction, labels=to_stored(prediction.labels, orientation))
    if prediction.grey is not None:
        turned = replace(turned, grey=to_stored(prediction.grey, orientation))
    if prediction.logits is not None:
        planes = to_stored(prediction.logits.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        turned = replace(turned, logits=np.ascontiguousarray(planes))
    return turned
