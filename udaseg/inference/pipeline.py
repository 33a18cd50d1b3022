"""Inference on many images: files read ahead in threads, batches on the device, results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

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
from udaseg.inference.sizes import MAX_WHOLE_PIXELS, input_size
from udaseg.inference.tiles import label_image
from udaseg.inference.windows import Model, predict_batch

Size = tuple[int, int]
RELEASE_SIZE = (512, 1024)
_BATCH_ON_GPU = 4
_MAX_WORKERS = 4
_READ_AHEAD = 2
_Job = TypeVar("_Job")
_Ready = TypeVar("_Ready")


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

    def needs_tiles(self, stored: Size) -> bool:
        """Return whether an image of that size is too large to predict in one piece."""
        height, width = self.input_size(stored)
        return height * width > MAX_WHOLE_PIXELS

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
class _DecodedSample:
    sample: Sample
    image: Pixels
    size: Size
    truth: Pixels | None


def infer(
    model: Model,
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
    than `WHOLE_PX` pixels are predicted in tiles.

    Args:
        model: In evaluation mode, on `device`.
        dataset: Data set of the images.
        samples: Images to predict.
        options: Inference options.
        device: Device of the network.
        truth: Also read the labels of the data set.
        confidence: Also return the probability of each label.
    """

    def read(sample: Sample) -> _DecodedSample:
        image = read_image(dataset.image_path(sample))
        stored = (image.shape[0], image.shape[1])
        labels = read_train_ids(dataset.label_path(sample)) if truth else None
        size = stored if labels is None else (labels.shape[0], labels.shape[1])
        if options.release:
            size = RELEASE_SIZE
            labels = None if labels is None else resize_labels(labels, size)
        return _DecodedSample(sample, resize_image(image, options.input_size(stored)), size, labels)

    batch_size = options.batch or (_BATCH_ON_GPU if device.type == "cuda" else 1)
    pending: tuple[list[_DecodedSample], list[Tensor]] = [], []
    for batch in _batches(read_ahead(read, samples, batch_size=batch_size), batch_size):
        first = batch[0].image
        if first.shape[0] * first.shape[1] <= MAX_WHOLE_PIXELS:
            computed = batch, _batch_logits(model, batch, options, device)
            yield from _batch_predictions(*pending, options, confidence=confidence)
            pending = computed
            continue
        yield from _batch_predictions(*pending, options, confidence=confidence)
        pending = [], []
        for item in batch:
            yield _predict_tiled(model, item, options, device, confidence=confidence)
    yield from _batch_predictions(*pending, options, confidence=confidence)


def read_ahead(
    read: Callable[[_Job], _Ready], jobs: Sequence[_Job], *, batch_size: int = 1
) -> Iterator[_Ready]:
    """Yield the results of `read` in order, reading a few jobs ahead in threads.

    OpenCV decodes without holding the interpreter lock, so threads are as fast as processes.

    Args:
        read: Called in a thread; its exceptions are raised here.
        jobs: Arguments of `read`.
        batch_size: Number of results that the caller consumes together.
    """
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Ready]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(read, job))
                if len(waiting) >= workers + batch_size + _READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error or a signal, cancel jobs that have not started
            for future in waiting:
                future.cancel()


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


def _batches(ready: Iterator[_DecodedSample], limit: int) -> Iterator[list[_DecodedSample]]:
    """Yield consecutive images of equal network input size, at most `limit` together."""
    batch: list[_DecodedSample] = []
    for item in ready:
        if batch and (len(batch) == limit or item.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _batch_logits(
    model: Model, batch: Sequence[_DecodedSample], options: InferenceOptions, device: torch.device
) -> list[Tensor]:
    """Return (K, h, w) of each image; split the batch on an out-of-memory error."""
    return list(
        infer_splitting_batch(lambda part: _predict_batch(model, part, options, device), batch)
    )


def _predict_batch(
    model: Model, batch: Sequence[_DecodedSample], options: InferenceOptions, device: torch.device
) -> Tensor:
    pixels = torch.from_numpy(np.stack([item.image for item in batch]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    return predict_batch(
        model, images, window=options.window, flip=options.flip, scales=options.scales
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


def _predict_tiled(
    model: Model,
    item: _DecodedSample,
    options: InferenceOptions,
    device: torch.device,
    *,
    confidence: bool,
) -> SamplePrediction:
    labels, probabilities = label_image(
        model,
        item.image,
        item.size,
        device=device,
        window=options.window,
        flip=options.flip,
        scales=options.scales,
        confidence=confidence,
    )
    return SamplePrediction(item.sample, labels, item.truth, probabilities)


Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Attributes:
        labels: (H, W) uint8.
        confidence: (H, W) float32; None if not requested.
        logits: (K, h, w) float32, the network's output; None if not requested, or if the image is
            predicted in tiles.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


def infer_batch(
    model: Model,
    images: Sequence[NDArray[np.uint8]],
    sizes: Sequence[tuple[int, int]],
    *,
    device: torch.device,
    window: tuple[int, int] | None = None,
    flip: bool = False,
    confidence: bool = False,
    logits: bool = False,
    temperature: float = 1.0,
) -> list[Prediction]:
    """Return the prediction for each image, with all images in one forward pass.

    Images that are too large for one piece are predicted one by one, in tiles. On a GPU
    out-of-memory error, the batch is split and retried.

    Args:
        model: In evaluation mode, on `device`.
        images: (H, W, 3) uint8 RGB, all of one size, at the network's input size.
        sizes: (height, width) of the labels of each image.
        device: Device of the network.
        window: Sliding window (height, width).
        flip: Average with the mirrored images.
        confidence: Also return the probability of each label.
        logits: Also return the logits.
        temperature: Temperature of the probabilities; labels and logits do not depend on it.
    """
    if needs_tiles(images[0].shape[:2]):
        results = (
            label_image(
                model,
                image,
                size,
                device=device,
                window=window,
                flip=flip,
                confidence=confidence,
                temperature=temperature,
            )
            for image, size in zip(images, sizes, strict=True)
        )
        return [Prediction(*result) for result in results]

    def predict(images_of_part: Sequence[NDArray[np.uint8]]) -> Tensor:
        stacked = torch.from_numpy(np.stack(images_of_part)).to(device).permute(0, 3, 1, 2)
        return predict_batch(model, stacked.float() / 255, window=window, flip=flip)

    return [
        Prediction(
            *labels_from_logits(image_logits, size, confidence=confidence, temperature=temperature),
            image_logits.cpu().contiguous().numpy() if logits else None,
        )
        for image_logits, size in zip(infer_splitting_batch(predict, images), sizes, strict=True)
    ]


def infer_splitting_batch(
    predict: Callable[[Sequence[Seen]], Tensor], images: Sequence[Seen]
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


def needs_tiles(size: Sequence[int]) -> bool:
    """Return whether an image of (height, width) is too large to predict in one piece."""
    return size[0] * size[1] > MAX_WHOLE_PIXELS
