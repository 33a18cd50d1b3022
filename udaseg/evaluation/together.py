"""Images of one size looked at together: labels, confidence and logits of each."""

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
    """What a network says of an image.

    Attributes:
        labels: (H, W) uint8.
        confidence: (H, W) float32; None unless asked for.
        logits: (K, h, w) float32 as the network gave them; None unless asked for, and of an image
            that is seen in tiles.
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
    """Return what a network says of each image, looking at all in one pass.

    Images that are too large to be looked at whole are looked at one by one, in tiles. A pass that
    does not fit into the memory of a GPU is made in halves.

    Args:
        model: In evaluation mode, on `device`.
        images: (H, W, 3) uint8 RGB, all of one size, as the network is to see them.
        sizes: (height, width) of the labels of each.
        device: Where the network is.
        window: Sliding window (height, width).
        flip: Average with the mirrored images.
        confidence: Also return the probability of each label.
        logits: Also return the logits.
        temperature: Of the probabilities; labels and logits do not depend on it.
    """
    if seen_in_tiles(images[0].shape[:2]):
        looks = (
            label_image(
                *(model, image, size),
                device=device,
                window=window,
                flip=flip,
                confidence=confidence,
                temperature=temperature,
            )
            for image, size in zip(images, sizes, strict=True)
        )
        return [Said(*look) for look in looks]

    def look(part: Sequence[NDArray[np.uint8]]) -> Tensor:
        stacked = torch.from_numpy(np.stack(part)).to(device).permute(0, 3, 1, 2)
        return predict_batch(model, stacked.float() / 255, window=window, flip=flip)

    return [
        Said(
            *labels_from_logits(one, size, confidence=confidence, temperature=temperature),
            one.cpu().contiguous().numpy() if logits else None,
        )
        for one, size in zip(in_halves(look, images), sizes, strict=True)
    ]


def in_halves(look: Callable[[Sequence[Seen]], Tensor], images: Sequence[Seen]) -> Iterator[Tensor]:
    """Yield (K, h, w) of each image, of one look at all; what does not fit is looked at in halves.

    Args:
        look: Gives (N, K, h, w) of N images.
        images: At least one.

    Raises:
        OutOfMemoryError: One image alone does not fit.
    """
    logits = None
    try:
        logits = look(images)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    if logits is not None:
        yield from logits
        return
    # out of the handler, so that what did not fit is let go of first
    half = len(images) // 2
    yield from in_halves(look, images[:half])
    yield from in_halves(look, images[half:])


def seen_in_tiles(size: Sequence[int]) -> bool:
    """Return whether an image of (height, width) is too large to be looked at whole."""
    return size[0] * size[1] > WHOLE_PX
