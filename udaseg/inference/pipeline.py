"""Inference on many images: files read ahead in threads, batches on the device, results in order.

`infer` predicts the images of a data set. It is made of parts that other pipelines use too:
`read_ahead`, `batches_of_one_size`, `infer_splitting_batch`, and `OrderedWork` for what is done
with the results. A `Limit` bounds how much each part holds, so memory does not grow with the number
of images.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels, read_image
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.errors import UsageError
from udaseg.inference.labels import labels_from_logits
from udaseg.inference.option_checks import check_batch, check_window
from udaseg.inference.sizes import MAX_WHOLE_PIXELS, input_size
from udaseg.inference.tiles import TileOptions, label_image
from udaseg.inference.windows import Network, predict_batch
from udaseg.models.pixels import image_batch

Size = tuple[int, int]
RELEASE_SIZE = (512, 1024)
_BATCH_ON_GPU = 4
_READERS = min(4, os.cpu_count() or 1)
_READ_AHEAD = 2
_Job = TypeVar("_Job")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class InferenceOptions:
    """Inference options, and the size at which labels are produced.

    Attributes:
        resize: (height, width) of the network's input; None keeps each image's size.
        keep_shape: Resize images of another aspect ratio to the pixel count of `resize`,
            undistorted.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Size of a sliding window; None predicts the whole image.
        release: Score like the released code of DACS and RCCR: input and truth at 1024x512, the
            truth resized by nearest neighbour, the logits with aligned corners.
        batch: Images per batch; None is 4 on a GPU and 1 elsewhere.
    """

    resize: Size | None = None
    keep_shape: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: Size | None = None
    release: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        check_window(self.window)
        check_batch(self.batch)
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UsageError(f"scales must be above 0, got {self.scales}")

    def needs_tiles(self, stored: Size) -> bool:
        """Return whether an image of that size is too large to predict in one piece."""
        return needs_tiles(self.input_size(stored))

    def input_size(self, stored: Size) -> Size:
        """Return the network's input (height, width) for an image of that size."""
        if self.release:
            return RELEASE_SIZE
        if self.keep_shape:
            return input_size(stored, self.resize)
        return self.resize or stored


@dataclass(frozen=True)
class SamplePrediction:
    """The prediction for one image.

    Attributes:
        sample: The image.
        labels: (H, W) uint8 class ids, in the size of `truth` or else of the stored image.
        truth: (H, W) uint8 train ids of the data set; None if not requested.
        confidence: (H, W) float32, or None.
    """

    sample: Sample
    labels: Pixels
    truth: Pixels | None
    confidence: NDArray[np.float32] | None


@dataclass(frozen=True)
class ImageLabels:
    """What the network says about an image.

    Attributes:
        labels: (H, W) uint8.
        confidence: (H, W) float32; None if not requested.
        logits: (K, h, w) float32, the network's output; None if not requested, or if the image is
            predicted in tiles.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _DecodedSample:
    sample: Sample
    image: Pixels
    size: Size
    truth: Pixels | None


def infer(
    model: Network,
    dataset: PreparedDataset,
    samples: Sequence[Sample],
    options: InferenceOptions,
    *,
    device: torch.device,
    truth: bool,
    confidence: bool = False,
) -> Iterator[SamplePrediction]:
    """Yield the prediction for each image, in order; memory does not grow with their number.

    Threads read and resize ahead. Images of equal size go through the network together. On a GPU,
    the next batch is computed while the labels of the previous one are extracted. Images of more
    than `MAX_WHOLE_PIXELS` pixels are predicted in tiles.

    Args:
        model: In evaluation mode, on `device`.
        dataset: Data set of the images.
        samples: Images to predict.
        options: Inference options.
        device: Device of the network.
        truth: Also read the labels of the data set.
        confidence: Also return the probability of each label.
    """
    batch_size = options.batch or (_BATCH_ON_GPU if device.type == "cuda" else 1)
    read = partial(_decode_sample, dataset=dataset, options=options, truth=truth)
    tile_options = TileOptions(
        device, options.window, options.flip, options.scales, confidence=confidence
    )
    predict = partial(_predict_images, model=model, options=tile_options)
    decoded = read_ahead(read, samples, Limit(_READERS + batch_size + _READ_AHEAD))
    pending: tuple[list[_DecodedSample], list[Tensor]] = [], []
    for batch in batches_of_one_size(decoded, _input_shape, Limit(batch_size)):
        if not needs_tiles(batch[0].image.shape):
            logits = infer_splitting_batch(predict, [item.image for item in batch])
            computed = batch, list(logits)
            yield from _batch_predictions(*pending, options, confidence=confidence)
            pending = computed
            continue
        yield from _batch_predictions(*pending, options, confidence=confidence)
        pending = [], []
        for item in batch:
            labels, probabilities = label_image(model, item.image, item.size, tile_options)
            yield SamplePrediction(item.sample, labels, item.truth, probabilities)
    yield from _batch_predictions(*pending, options, confidence=confidence)


def infer_batch(
    model: Network,
    images: Sequence[Pixels],
    sizes: Sequence[Size],
    options: TileOptions,
    *,
    logits: bool = False,
) -> list[ImageLabels]:
    """Return the prediction for each image, with all images in one forward pass.

    Images that are too large for one piece are predicted one by one, in tiles. On a GPU
    out-of-memory error, the batch is split and retried.

    Args:
        model: In evaluation mode, on the device of `options`.
        images: (H, W, 3) uint8 RGB, all of one size, at the network's input size.
        sizes: (height, width) of the labels of each image.
        options: Options of the prediction.
        logits: Also return the logits.
    """
    if needs_tiles(images[0].shape):
        return [
            ImageLabels(*label_image(model, image, size, options))
            for image, size in zip(images, sizes, strict=True)
        ]
    predict = partial(_predict_images, model=model, options=options)
    predictions = []
    for image_logits, size in zip(infer_splitting_batch(predict, images), sizes, strict=True):
        labels, confidence = labels_from_logits(
            image_logits, size, confidence=options.confidence, temperature=options.temperature
        )
        stored_logits = image_logits.cpu().contiguous().numpy() if logits else None
        predictions.append(ImageLabels(labels, confidence, stored_logits))
    return predictions


def needs_tiles(size: Sequence[int]) -> bool:
    """Return whether an image of (height, width) is too large to predict in one piece."""
    return size[0] * size[1] > MAX_WHOLE_PIXELS


def check_release_sizes(dataset: PreparedDataset, split: str) -> None:
    """Refuse the protocol of the released code for images that it would distort.

    Raises:
        UsageError: An image is not twice as wide as high.
    """
    for sample in dataset.split(split):
        if sample.width != 2 * sample.height:
            raise UsageError(
                "--release needs images twice as wide as high (2048x1024 in Cityscapes); "
                f"{dataset.name} has {sample.width}x{sample.height}"
            )


@dataclass(frozen=True)
class Limit:
    """How much a part of a pipeline may hold at a time.

    Attributes:
        items: Number of images.
        pixels: Pixels of all these images together, for images of any size.
    """

    items: int
    pixels: float = math.inf

    def exceeded(self, items: int, pixels: int) -> bool:
        """Return whether that many items with that many pixels are too much."""
        return items > self.items or pixels > self.pixels


_FEW_ITEMS = Limit(_READERS + 1 + _READ_AHEAD)


def _no_pixels(_: object) -> int:
    return 0


def read_ahead(
    read: Callable[[_Job], _Item],
    jobs: Iterable[_Job],
    limit: Limit = _FEW_ITEMS,
    *,
    pixels_of: Callable[[_Job], int] = _no_pixels,
    workers: int = _READERS,
) -> Generator[_Item, None, None]:
    """Yield the results of `read` in order, reading a few jobs ahead in threads.

    OpenCV decodes without holding the interpreter lock, so threads are as fast as processes. A job
    that would exceed the limit is begun only once the results before it are consumed.

    Args:
        read: Called in a thread; its exceptions are raised here, in its turn.
        jobs: Arguments of `read`.
        limit: Results that are being read or wait to be consumed.
        pixels_of: Returns the pixels of a job, for the limit; called before it is read.
        workers: Number of threads.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[_Item]]] = deque()
        try:
            for job in jobs:
                pixels = pixels_of(job)
                while waiting and limit.exceeded(len(waiting) + 1, _total_pixels(waiting) + pixels):
                    yield waiting.popleft()[1].result()
                waiting.append((pixels, pool.submit(read, job)))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:  # after an error or a signal, cancel jobs that have not started
            for _, future in waiting:
                future.cancel()


def batches_of_one_size(
    items: Iterable[_Item],
    shape_of: Callable[[_Item], tuple[int, ...]],
    limit: Limit,
    *,
    pixels_of: Callable[[_Item], int] = _no_pixels,
) -> Iterator[list[_Item]]:
    """Yield consecutive items of equal shape together, each batch as soon as it is full.

    Args:
        items: In the order of the batches.
        shape_of: Returns the shape of an item.
        limit: Items of a batch; one whose pixels exceed the limit takes no more of them.
        pixels_of: Returns the pixels of an item, for the limit.
    """
    batch: list[_Item] = []
    for item in items:
        if batch and shape_of(item) != shape_of(batch[0]):
            yield batch
            batch = []
        batch.append(item)
        del item  # not kept while waiting for the next, so that a large image is freed early
        if limit.exceeded(len(batch) + 1, sum(map(pixels_of, batch))):
            yield batch
            batch = []
    if batch:
        yield batch


def infer_splitting_batch(
    predict: Callable[[Sequence[Pixels]], Tensor], images: Sequence[Pixels]
) -> Iterator[Tensor]:
    """Yield the logits (K, h, w) of each image, splitting the batch if memory is exhausted.

    Args:
        predict: Maps N images to (N, K, h, w).
        images: At least one.

    Raises:
        OutOfMemoryError: A single image does not fit in memory.
    """
    logits = None
    try:
        logits = predict(images)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    if logits is not None:
        yield from logits
        return
    # outside the handler, so that the tensors of the failed attempt are freed first
    half = len(images) // 2
    yield from infer_splitting_batch(predict, images[:half])
    yield from infer_splitting_batch(predict, images[half:])


class OrderedWork:
    """Context that runs calls one after another in a background thread; only a few may wait.

    Leaving the context waits for all calls. The exception of a call is raised by a later `submit`
    or on leaving, unless the context is left with another exception; the calls after it run all the
    same.

    Args:
        limit: Calls that may be unfinished after `submit`, which blocks while there are more.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._thread = ThreadPoolExecutor(1)
        self._unfinished: deque[tuple[int, Future[object]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            while self._unfinished and error is None:
                self._wait_for_first()
        finally:
            self._thread.shutdown()

    def submit(self, call: Callable[[], object], pixels: int = 0) -> None:
        """Run `call` after all calls before it; `pixels` counts towards the limit."""
        self._unfinished.append((pixels, self._thread.submit(call)))
        while self._limit.exceeded(len(self._unfinished), _total_pixels(self._unfinished)):
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        self._unfinished.popleft()[1].result()


def _decode_sample(
    sample: Sample, *, dataset: PreparedDataset, options: InferenceOptions, truth: bool
) -> _DecodedSample:
    """Read an image, resized to the network's input size, and its labels if `truth`."""
    image = read_image(dataset.image_path(sample))
    stored = (image.shape[0], image.shape[1])
    labels = read_train_ids(dataset.label_path(sample)) if truth else None
    size = stored if labels is None else (labels.shape[0], labels.shape[1])
    if options.release:
        size = RELEASE_SIZE
        labels = None if labels is None else resize_labels(labels, size)
    return _DecodedSample(sample, resize_image(image, options.input_size(stored)), size, labels)


def _input_shape(item: _DecodedSample) -> tuple[int, ...]:
    return item.image.shape


def _predict_images(images: Sequence[Pixels], *, model: Network, options: TileOptions) -> Tensor:
    """Return the logits (N, K, h, w) of images of one size."""
    return predict_batch(
        model,
        image_batch(images, options.device),
        window=options.window,
        flip=options.flip,
        scales=options.scales,
    )


def _batch_predictions(
    batch: Sequence[_DecodedSample],
    logits: Sequence[Tensor],
    options: InferenceOptions,
    *,
    confidence: bool,
) -> Iterator[SamplePrediction]:
    for item, item_logits in zip(batch, logits, strict=True):
        labels, probabilities = labels_from_logits(
            item_logits, item.size, confidence=confidence, align_corners=options.release
        )
        yield SamplePrediction(item.sample, labels, item.truth, probabilities)


def _total_pixels(futures: Iterable[tuple[int, Future[_Item]]]) -> int:
    return sum(pixels for pixels, _ in futures)
