"""Predict several images of one size together: labels, confidence and logits of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udaseg.evaluation.inference import Model, labels_from_logits, predict_batch
from udaseg.evaluation.sizes import WHOLE_PX
from udaseg.evaluation.tiles import label_image

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Said:
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


def label_images(
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
) -> list[Said]:
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
    if seen_in_tiles(images[0].shape[:2]):
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
        return [Said(*result) for result in results]

    def predict(images_of_part: Sequence[NDArray[np.uint8]]) -> Tensor:
        stacked = torch.from_numpy(np.stack(images_of_part)).to(device).permute(0, 3, 1, 2)
        return predict_batch(model, stacked.float() / 255, window=window, flip=flip)

    return [
        Said(
            *labels_from_logits(image_logits, size, confidence=confidence, temperature=temperature),
            image_logits.cpu().contiguous().numpy() if logits else None,
        )
        for image_logits, size in zip(in_halves(predict, images), sizes, strict=True)
    ]


def in_halves(
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
    yield from in_halves(predict, images[:half])
    yield from in_halves(predict, images[half:])


def seen_in_tiles(size: Sequence[int]) -> bool:
    """Return whether an image of (height, width) is too large to predict in one piece."""
    return size[0] * size[1] > WHOLE_PX
