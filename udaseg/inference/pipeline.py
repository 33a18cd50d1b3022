"""Inference on a data set: files read ahead in threads, batches on the device, results in order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels
from udaseg.data.loading.threads import (
    ITEMS_AHEAD,
    Limit,
    batches_of_one_size,
    read_ahead,
)
from udaseg.data.loading.transforms import Resampling, resize_image, resize_labels
from udaseg.errors import UsageError
from udaseg.inference.options import check_ranges
from udaseg.inference.predictor import infer_batch
from udaseg.inference.sizes import input_size, needs_tiles
from udaseg.inference.tiles import TileOptions
from udaseg.inference.windows import Network
from udaseg.sizes import Resize, Size, resized

RELEASE_SIZE = (512, 1024)
_BATCH_ON_GPU = 4


@dataclass(frozen=True)
class InferenceOptions:
    """Inference options, and the size at which labels are produced.

    Attributes:
        resize: (height, width) of the network's input, or its shorter side; None keeps each image's
            size.
        resampling: How images are resized, as in the recipe.
        keep_shape: Resize images of another aspect ratio to the pixel count of `resize`,
            undistorted.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Size of a sliding window; None predicts the whole image.
        release: Score like the released code of DACS and RCCR: input and truth at 1024x512, the
            truth resized by nearest neighbour, the logits with aligned corners.
        batch: Images per batch; None is 4 on a GPU and 1 elsewhere.
    """

    resize: Resize | None = None
    keep_shape: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: Size | None = None
    release: bool = False
    batch: int | None = None
    resampling: Resampling = "area"

    def __post_init__(self) -> None:
        check_ranges(window=self.window, batch=self.batch)
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
        return resized(stored, self.resize)


@dataclass(frozen=True)
class SamplePrediction:
    """The prediction for one image, upright, in the size of `truth` or else of the image.

    Attributes:
        labels: (H, W) class ids.
        truth: (H, W) train ids of the data set; None if not requested.
        confidence: (H, W); None if not requested.
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

    `model` is in evaluation mode, on `device`. With `truth`, the labels of the data set are read
    too; with `confidence`, the probability of each label is also returned.
    """
    batch_size = options.batch or (_BATCH_ON_GPU if device.type == "cuda" else 1)
    read = partial(_decode_sample, dataset=dataset, options=options, truth=truth)
    decoded = read_ahead(read, samples, Limit(ITEMS_AHEAD + batch_size))
    tile_options = TileOptions(
        device,
        options.window,
        options.flip,
        options.scales,
        confidence=confidence,
        align_corners=options.release,
    )
    pending: Iterator[SamplePrediction] = iter(())
    for batch in batches_of_one_size(decoded, _input_shape, Limit(batch_size)):
        images, sizes = [item.image for item in batch], [item.size for item in batch]
        results = infer_batch(model, images, sizes, tile_options)
        yield from pending
        pending = (
            SamplePrediction(item.sample, result.labels, item.truth, result.confidence)
            for item, result in zip(batch, results, strict=True)
        )
    yield from pending


def check_release_sizes(dataset: PreparedDataset, split: str) -> None:
    """Raise a `UsageError` for images that the protocol of the released code would distort."""
    for sample in dataset.split(split):
        if sample.width != 2 * sample.height:
            raise UsageError(
                "--release needs images twice as wide as high (2048x1024 in Cityscapes); "
                f"{dataset.name} has {sample.width}x{sample.height}"
            )


def _decode_sample(
    sample: Sample, *, dataset: PreparedDataset, options: InferenceOptions, truth: bool
) -> _DecodedSample:
    """Read an image, resized to the network's input size, and its labels if `truth`."""
    image = dataset.read_image(sample)
    labels = dataset.read_labels(sample) if truth else None
    if options.release and labels is not None:
        labels = resize_labels(labels, RELEASE_SIZE)
    shown = resize_image(image, options.input_size(image.shape[:2]), options.resampling)
    size = RELEASE_SIZE if options.release else (image if labels is None else labels).shape[:2]
    return _DecodedSample(sample, shown, size, labels)


def _input_shape(item: _DecodedSample) -> tuple[int, ...]:
    return item.image.shape
