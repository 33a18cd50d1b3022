"""Labels of a whole image of any size, in memory that does not grow with it."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from udaseg.evaluation.inference import Model, labels_from_logits, predict_logits

WHOLE_PX = 2048 * 2048
"""Most pixels that a network is shown at once."""

_CORE_PX = 1024
_MARGIN_PX = 256


def label_image(
    model: Model,
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    device: torch.device,
    window: tuple[int, int] | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    confidence: bool = False,
    temperature: float = 1.0,
    whole_px: int = WHOLE_PX,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return the labels of an image at `size`, and their probabilities when asked.

    Up to `whole_px` pixels the network sees the image at once (or through `window`). Above, it
    sees tiles of 1024 pixels and 256 more on each side; of each tile the inner part is kept. Tiles
    begin at multiples of 256, so the cells of a network of any stride lie where they always lie.

    Args:
        model: In evaluation mode, on `device`.
        image: (H, W, 3) uint8 RGB at the size that the network is to see.
        size: (height, width) of the result.
        device: Where the network is.
        window: Sliding window (height, width) inside the image or each tile.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        confidence: Also return the probability of each label.
        temperature: Of these probabilities; labels do not depend on it.
        whole_px: Most pixels to look at at once.

    Returns:
        Labels (H, W) uint8 and confidence (H, W) float32 or None.
    """

    def look(
        part: NDArray[np.uint8], wanted: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        tensor = torch.from_numpy(np.ascontiguousarray(part)).to(device).permute(2, 0, 1)[None]
        logits = predict_logits(
            model, tensor.float() / 255, window=window, flip=flip, scales=scales
        )
        return labels_from_logits(logits, wanted, confidence=confidence, temperature=temperature)

    height, width = image.shape[:2]
    if height * width <= whole_px:
        return look(image, size)
    labels = np.empty((height, width), np.uint8)
    sure = np.empty((height, width), np.float32) if confidence else None
    for rows, seen_rows in _spans(height):
        for columns, seen_columns in _spans(width):
            part = image[seen_rows, seen_columns]
            tile_labels, tile_sure = look(part, (part.shape[0], part.shape[1]))
            inner = (_within(rows, seen_rows), _within(columns, seen_columns))
            labels[rows, columns] = tile_labels[inner]
            if sure is not None and tile_sure is not None:
                sure[rows, columns] = tile_sure[inner]
    if size != (height, width):
        wanted = (size[1], size[0])
        labels = np.asarray(
            cv2.resize(labels, wanted, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
        if sure is not None:
            sure = np.asarray(cv2.resize(sure, wanted), np.float32)
    return labels, sure


def _spans(side: int) -> Iterator[tuple[slice, slice]]:
    """Yield what is kept of each tile and what the network sees of it, along one side."""
    for start in range(0, side, _CORE_PX):
        stop = min(side, start + _CORE_PX)
        yield slice(start, stop), slice(max(0, start - _MARGIN_PX), min(side, stop + _MARGIN_PX))


def _within(kept: slice, seen: slice) -> slice:
    return slice(kept.start - seen.start, kept.stop - seen.start)
