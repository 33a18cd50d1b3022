"""Predict images of any size: resize them for the network, and label them at full size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udaseg.data.files.bands import Bands
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.loading.transforms import Resampling, resize_image
from udaseg.errors import DataError
from udaseg.inference.input_images import InputImage
from udaseg.inference.sizes import input_size, needs_tiles
from udaseg.inference.tiles import TileOptions, image_logits, label_in_tiles, label_logits
from udaseg.inference.windows import Network
from udaseg.models.segmenter import evaluation_mode
from udaseg.sizes import Resize, Size


@dataclass(frozen=True)
class ImageLabels:
    """What the network says about an image.

    Attributes:
        labels: (H, W) class ids, `IGNORE` where the network abstains.
        confidence: (H, W); None if not requested.
        logits: (K, h, w), the network's output; None if not requested, or if the image is predicted
            in tiles.
    """

    labels: Pixels
    confidence: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PreparedImage:
    """An image as stored, and upright at the network's input size."""

    image: InputImage
    network_input: Pixels

    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of the network's input; a batch has one."""
        return self.network_input.shape


@dataclass(frozen=True)
class Predictor:
    """A network with the options that decide its predictions.

    Attributes:
        network: On the device of `options`.
        classes: Outputs of the network.
        trained_size: That of training and validation; None if images kept their size.
        options: How to predict one image.
        abstain: Pixels with less confidence are ignored; needs confidence.
        logits: Also return the logits.
        batch: Images of one size per batch.
        bits: Bits of the values of 16-bit images; None if unknown.
        bands: The bands of TIFFs that are read; None for gray, RGB or RGBA.
        resampling: How images are resized, as in the recipe.
    """

    network: nn.Module
    classes: ClassSpace
    trained_size: Resize | None
    options: TileOptions
    abstain: float | None = None
    logits: bool = False
    batch: int = 1
    bits: int | None = None
    bands: Bands | None = None
    resampling: Resampling = "area"

    def prepare(self, image: InputImage) -> PreparedImage:
        """Turn an image upright and resize it to the network's input size."""
        size = input_size(image.upright_size, self.trained_size)
        if self.logits and needs_tiles(size):
            raise DataError(
                f"{image.path}: {size[1]}x{size[0]} pixels are predicted in tiles, without logits; "
                "leave logits out of --save"
            )
        return PreparedImage(image, resize_image(image.upright(), size, self.resampling))

    def predict(self, images: Sequence[PreparedImage]) -> list[ImageLabels]:
        """Return the predictions of images of one input size, upright and at their own sizes."""
        with evaluation_mode(self.network):
            results = infer_batch(
                self.network,
                [item.network_input for item in images],
                [item.image.upright_size for item in images],
                self.options,
                logits=self.logits,
            )
            predictions = list(results)
        if self.abstain is not None:
            for prediction in predictions:
                assert prediction.confidence is not None
                # `not >=`, so that NaN counts as no confidence
                prediction.labels[~(prediction.confidence >= self.abstain)] = IGNORE
        return predictions


def infer_batch(
    model: Network,
    images: Sequence[Pixels],
    sizes: Sequence[Size],
    options: TileOptions,
    *,
    logits: bool = False,
) -> Iterator[ImageLabels]:
    """Return an iterator over the predictions of images of one size.

    All images go through the network now, in one forward pass; the labels are extracted when they
    are taken. On a GPU out-of-memory error, the batch is split and retried. Images that are too
    large for one piece are predicted when they are taken, one by one, in tiles.

    `model` is in evaluation mode, on the device of `options`; `images` have its input size, and
    their labels get `sizes`. With `logits`, the logits are also returned.
    """
    if getattr(model, "align_corners", False):
        options = replace(options, align_corners=True)
    if needs_tiles(images[0].shape):
        return (
            ImageLabels(*label_in_tiles(model, image, size, options))
            for image, size in zip(images, sizes, strict=True)
        )
    maps = list(_batch_logits(model, images, options))
    return (
        ImageLabels(*label_logits(each, size, options), each.cpu().numpy() if logits else None)
        for each, size in zip(maps, sizes, strict=True)
    )


def _batch_logits(
    model: Network, images: Sequence[Pixels], options: TileOptions
) -> Iterator[Tensor]:
    """Yield the logits (K, h, w) of each image, splitting the batch if memory is exhausted."""
    logits = None
    try:
        logits = image_logits(model, images, options)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    if logits is not None:
        yield from logits
        return
    # outside the handler, so that the tensors of the failed attempt are freed first
    half = len(images) // 2
    yield from _batch_logits(model, images[:half], options)
    yield from _batch_logits(model, images[half:], options)
