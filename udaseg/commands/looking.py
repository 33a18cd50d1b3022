"""A network looks at a split: files decoded ahead in threads, batches on the device, in order."""

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
    """How a network looks at images, and at which size its labels are taken.

    Attributes:
        resize: (height, width) of the network's input; None keeps each image's size.
        keep_shape: Give images of another shape as many pixels as `resize` has, unsquashed.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Sliding window; None looks at the whole image.
        release: As the released code of DACS and RCCR scores: input and truth at 1024x512, the
            truth by nearest neighbour, logits enlarged with aligned corners.
        batch: Images at a time; None is 4 on a GPU and 1 elsewhere.
    """

    resize: Size | None = None
    keep_shape: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: Size | None = None
    release: bool = False
    batch: int | None = None

    def in_tiles(self, stored: Size) -> bool:
        """Return whether an image of that size is too large to be seen at once."""
        height, width = self.input_size(stored)
        return height * width > WHOLE_PX

    def input_size(self, stored: Size) -> Size:
        """Return (height, width) at which the network sees an image of that size."""
        if self.release:
            return RELEASE_SIZE
        if self.keep_shape:
            return network_size(stored, self.resize)
        return self.resize or stored


@dataclass(frozen=True)
class Labelled:
    """What a network says of an image.

    Attributes:
        sample: Which image.
        labels: (H, W) uint8 class ids, of the size of `truth` or else of the stored image.
        truth: (H, W) uint8 train ids of the data set; None where they were not asked for.
        confidence: (H, W) float32 or None.
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
    look: Look,
    *,
    device: torch.device,
    truth: bool,
    confidence: bool = False,
) -> Iterator[Labelled]:
    """Yield what a network says of each image, in order, in memory that does not grow with them.

    Threads read and resize ahead; images of one size go through the network together; on a GPU
    the next batch is computed while the labels of the one before are taken. Images of more than
    `WHOLE_PX` go in tiles.

    Args:
        model: In evaluation mode, on `device`.
        dataset: Where the images are.
        samples: Which of them.
        look: How.
        device: Where the network is.
        truth: Also read the labels of the data set.
        confidence: Also return the probability of each label.
    """

    def read(sample: Sample) -> _Read:
        image = read_image(dataset.image_path(sample))
        stored = (image.shape[0], image.shape[1])
        true = read_train_ids(dataset.label_path(sample)) if truth else None
        size = stored if true is None else (true.shape[0], true.shape[1])
        if look.release:
            size = RELEASE_SIZE
            true = None if true is None else resize_labels(true, size)
        return _Read(sample, resize_image(image, look.input_size(stored)), size, true)

    most = look.batch or (_BATCH_ON_GPU if device.type == "cuda" else 1)
    before: tuple[list[_Read], list[Tensor]] = [], []
    for batch in _batches(read_ahead(read, samples, at_once=most), most):
        first = batch[0].image
        if first.shape[0] * first.shape[1] <= WHOLE_PX:
            seen = batch, _logits(model, batch, look, device)
            yield from _labels(*before, look, confidence=confidence)
            before = seen
            continue
        yield from _labels(*before, look, confidence=confidence)
        before = [], []
        for each in batch:
            yield _in_tiles(model, each, look, device, confidence=confidence)
    yield from _labels(*before, look, confidence=confidence)


def read_ahead(
    read: Callable[[_Job], _Ready], jobs: Sequence[_Job], *, at_once: int = 1
) -> Iterator[_Ready]:
    """Yield what reading gives, in order, a few read ahead in threads.

    OpenCV decodes outside the interpreter lock, so threads serve as well as processes.

    Args:
        read: Called in a thread; what it raises is raised here.
        jobs: What to read.
        at_once: How many the reader of these takes together.
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
        finally:  # a fault or a signal: what has not begun is dropped
            for each in waiting:
                each.cancel()


def refuse_release(dataset: PreparedDataset, split: str) -> None:
    """Refuse the releases' protocol for images that it would squash.

    Raises:
        UsageError: An image is not twice as wide as high.
    """
    for sample in dataset.split(split):
        if sample.width != 2 * sample.height:
            raise UsageError(
                f"--release halves images of 2048x1024, as of Cityscapes; {dataset.name} has "
                f"{sample.width}x{sample.height}"
            )


def _batches(ready: Iterator[_Read], most: int) -> Iterator[list[_Read]]:
    """Yield runs of images that the network sees at one size, at most `most` together."""
    batch: list[_Read] = []
    for each in ready:
        if batch and (len(batch) == most or each.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _logits(model: Model, batch: Sequence[_Read], look: Look, device: torch.device) -> list[Tensor]:
    """Return (K, h, w) of each image; a batch that does not fit in memory is halved."""
    return list(in_halves(lambda part: _together(model, part, look, device), batch))


def _together(model: Model, batch: Sequence[_Read], look: Look, device: torch.device) -> Tensor:
    pixels = torch.from_numpy(np.stack([each.image for each in batch]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    return predict_batch(model, images, window=look.window, flip=look.flip, scales=look.scales)


def _labels(
    batch: Sequence[_Read], logits: Sequence[Tensor], look: Look, *, confidence: bool
) -> Iterator[Labelled]:
    for each, own in zip(batch, logits, strict=True):
        labels, sure = labels_from_logits(
            own, each.size, confidence=confidence, align_corners=look.release
        )
        yield Labelled(each.sample, labels, each.truth, sure)


def _in_tiles(
    model: Model, read: _Read, look: Look, device: torch.device, *, confidence: bool
) -> Labelled:
    labels, sure = label_image(
        *(model, read.image, read.size),
        device=device,
        window=look.window,
        flip=look.flip,
        scales=look.scales,
        confidence=confidence,
    )
    return Labelled(read.sample, labels, read.truth, sure)
