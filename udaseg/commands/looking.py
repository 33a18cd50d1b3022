"""Run a network over a split: decode files ahead in threads, predict in batches, in order."""

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

from udaseg.data import (
    PreparedDataset,
    Sample,
    read_image,
    read_train_ids,
    resize_image,
    resize_labels,
)
from udaseg.errors import UsageError
from udaseg.evaluation import (
    WHOLE_PX,
    Model,
    in_halves,
    label_image,
    labels_from_logits,
    network_size,
    predict_batch,
)

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

RELEASE_SIZE = (512, 1024)
_BATCH_ON_GPU = 4
_MOST_WORKERS = 4
_AHEAD = 2
_Job = TypeVar("_Job")
_Ready = TypeVar("_Ready")


@dataclass(frozen=True)
class Look:
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

    def in_tiles(self, stored: Size) -> bool:
        """Return whether an image of that size is too large to predict in one piece."""
        height, width = self.input_size(stored)
        return height * width > WHOLE_PX

    def input_size(self, stored: Size) -> Size:
        """Return the network's input (height, width) for an image of that size."""
        if self.release:
            return RELEASE_SIZE
        if self.keep_shape:
            return network_size(stored, self.resize)
        return self.resize or stored


@dataclass(frozen=True)
class Labelled:
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
class _Read:
    sample: Sample
    image: Pixels
    size: Size
    truth: Pixels | None


def look_at(
    model: Model,
    dataset: PreparedDataset,
    samples: Sequence[Sample],
    options: Look,
    *,
    device: torch.device,
    truth: bool,
    confidence: bool = False,
) -> Iterator[Labelled]:
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

    def read(sample: Sample) -> _Read:
        image = read_image(dataset.image_path(sample))
        stored = (image.shape[0], image.shape[1])
        labels = read_train_ids(dataset.label_path(sample)) if truth else None
        size = stored if labels is None else (labels.shape[0], labels.shape[1])
        if options.release:
            size = RELEASE_SIZE
            labels = None if labels is None else resize_labels(labels, size)
        return _Read(sample, resize_image(image, options.input_size(stored)), size, labels)

    batch_size = options.batch or (_BATCH_ON_GPU if device.type == "cuda" else 1)
    pending: tuple[list[_Read], list[Tensor]] = [], []
    for batch in _batches(read_ahead(read, samples, at_once=batch_size), batch_size):
        first = batch[0].image
        if first.shape[0] * first.shape[1] <= WHOLE_PX:
            computed = batch, _logits(model, batch, options, device)
            yield from _labels(*pending, options, confidence=confidence)
            pending = computed
            continue
        yield from _labels(*pending, options, confidence=confidence)
        pending = [], []
        for item in batch:
            yield _in_tiles(model, item, options, device, confidence=confidence)
    yield from _labels(*pending, options, confidence=confidence)


def read_ahead(
    read: Callable[[_Job], _Ready], jobs: Sequence[_Job], *, at_once: int = 1
) -> Iterator[_Ready]:
    """Yield the results of `read` in order, reading a few jobs ahead in threads.

    OpenCV decodes without holding the interpreter lock, so threads are as fast as processes.

    Args:
        read: Called in a thread; its exceptions are raised here.
        jobs: Arguments of `read`.
        at_once: Number of results that the caller consumes together.
    """
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Ready]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(read, job))
                if len(waiting) >= workers + at_once + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error or a signal, cancel jobs that have not started
            for future in waiting:
                future.cancel()


def refuse_release(dataset: PreparedDataset, split: str) -> None:
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


def _batches(ready: Iterator[_Read], limit: int) -> Iterator[list[_Read]]:
    """Yield consecutive images of equal network input size, at most `limit` together."""
    batch: list[_Read] = []
    for item in ready:
        if batch and (len(batch) == limit or item.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _logits(
    model: Model, batch: Sequence[_Read], options: Look, device: torch.device
) -> list[Tensor]:
    """Return (K, h, w) of each image; split the batch on an out-of-memory error."""
    return list(in_halves(lambda part: _together(model, part, options, device), batch))


def _together(model: Model, batch: Sequence[_Read], options: Look, device: torch.device) -> Tensor:
    pixels = torch.from_numpy(np.stack([item.image for item in batch]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    return predict_batch(
        model, images, window=options.window, flip=options.flip, scales=options.scales
    )


def _labels(
    batch: Sequence[_Read], logits: Sequence[Tensor], options: Look, *, confidence: bool
) -> Iterator[Labelled]:
    for item, item_logits in zip(batch, logits, strict=True):
        labels, probabilities = labels_from_logits(
            item_logits, item.size, confidence=confidence, align_corners=options.release
        )
        yield Labelled(item.sample, labels, item.truth, probabilities)


def _in_tiles(
    model: Model, item: _Read, options: Look, device: torch.device, *, confidence: bool
) -> Labelled:
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
    return Labelled(item.sample, labels, item.truth, probabilities)
