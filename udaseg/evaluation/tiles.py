"""Labels of a whole image of any size, in memory that does not grow with it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg.evaluation.inference import Model, labels_from_logits, predict_logits
from udaseg.evaluation.sizes import WHOLE_PX

_CORE_PX = 1024
_MARGIN_PX = 256
_RAMP_PX = 128
"""Half the width over which a tile hands over to the next."""

_GRID_PX = 32
"""Multiple of every network's stride; sides of tiles are multiples of it."""

_SEAM_PX = _RAMP_PX + _GRID_PX

Labelled: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32] | None]


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
) -> Labelled:
    """Return the labels of an image at `size`, and their probabilities when asked.

    Up to `whole_px` pixels the network sees the image at once (or through `window`). Above, it
    sees tiles of 1024 pixels and 256 more on each side. Between two tiles the logits of one go
    over into those of the other along 256 pixels, and the outermost 128 pixels of a tile, which
    know least of what is around them, count for nothing. Tiles begin at multiples of 256, so the
    cells of a network of any stride lie where they always lie.

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

    def look(part: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(part)).to(device).permute(2, 0, 1)[None]
        return predict_logits(model, tensor.float() / 255, window=window, flip=flip, scales=scales)

    def decide(logits: Tensor, wanted: tuple[int, int]) -> Labelled:
        return labels_from_logits(logits, wanted, confidence=confidence, temperature=temperature)

    height, width = image.shape[:2]
    if height * width <= whole_px:
        return decide(look(image), size)
    labels = np.empty((height, width), np.uint8)
    sure = np.empty((height, width), np.float32) if confidence else None
    for rows, columns, logits, inner in _blended(look, image):
        stride = inner.stride
        seen = (logits.shape[-2] * stride, logits.shape[-1] * stride)
        part_labels, part_sure = decide(logits, seen)
        labels[rows, columns] = part_labels[inner.rows, inner.columns]
        if sure is not None and part_sure is not None:
            sure[rows, columns] = part_sure[inner.rows, inner.columns]
    if size != (height, width):
        wanted = (size[1], size[0])
        labels = np.asarray(
            cv2.resize(labels, wanted, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
        )
        if sure is not None:
            sure = np.asarray(cv2.resize(sure, wanted), np.float32)
    return labels, sure


@dataclass(frozen=True)
class _Part:
    """A stretch of one side in which the same tiles have a say: the inside of a tile, or a seam.

    Attributes:
        start: First pixel.
        stop: Behind the last.
        complete: No later tile has a say in it.
    """

    start: int
    stop: int
    complete: bool


@dataclass(frozen=True)
class _Tile:
    """A tile along one side.

    Attributes:
        seen: What the network sees; its end may lie beyond the image, up to the grid.
        parts: Where it has a say.
        begin: Seam with the tile before, if there is one.
        end: Seam with the next, if there is one.
    """

    seen: slice
    parts: tuple[_Part, ...]
    begin: int | None
    end: int | None

    def weights(self, cells: int, stride: int) -> Tensor:
        """Return (cells,), how much each of its cells counts; with the neighbour's, one."""
        place = (torch.arange(cells) + 0.5) * stride + self.seen.start
        weight = torch.ones(cells)
        if self.begin is not None:
            weight *= ((place - self.begin) / (2 * _RAMP_PX) + 0.5).clamp(0, 1)
        if self.end is not None:
            weight *= (0.5 - (place - self.end) / (2 * _RAMP_PX)).clamp(0, 1)
        return weight


@dataclass(frozen=True)
class _Inner:
    """Where a part lies in what is enlarged for it, which is a cell more on each side."""

    stride: int
    rows: slice
    columns: slice


def _tiles(side: int) -> tuple[_Tile, ...]:
    """Return the tiles along one side of an image."""
    tiles = []
    for start in range(0, side, _CORE_PX):
        stop = min(side, start + _CORE_PX)
        begin = start if start > 0 else None
        end = stop if stop < side else None
        first = 0 if begin is None else min(start + _SEAM_PX, side)
        last = side if end is None else stop - _SEAM_PX
        parts = [] if begin is None else [_Part(start - _SEAM_PX, first, complete=True)]
        if first < last:
            parts.append(_Part(first, last, complete=True))
        if end is not None:
            parts.append(_Part(last, min(stop + _SEAM_PX, side), complete=False))
        beyond = min(-(-side // _GRID_PX) * _GRID_PX, stop + _MARGIN_PX)
        seen = slice(max(0, start - _MARGIN_PX), beyond)
        tiles.append(_Tile(seen, tuple(parts), begin, end))
    return tuple(tiles)


def _blended(
    look: Callable[[NDArray[np.uint8]], Tensor], image: NDArray[np.uint8]
) -> Iterator[tuple[slice, slice, Tensor, _Inner]]:
    """Yield each part of an image once, with its logits.

    Parts in which several tiles have a say are kept until the last of these was looked at: the
    seams of one row of tiles, so the memory grows with the width of the image only.

    Yields:
        Its rows and columns, the logits (K, h, w) of its cells and of those around it, and where
        the part lies among these when they are enlarged to pixels.
    """
    across = _tiles(image.shape[1])
    waiting: dict[tuple[int, int], Tensor] = {}
    for down in _tiles(image.shape[0]):
        for tile in across:
            logits, stride = _looked_at(look, image, down.seen, tile.seen)
            for rows in down.parts:
                high = _cells(rows, down.seen.start, stride, logits.shape[1])
                for columns in tile.parts:
                    wide = _cells(columns, tile.seen.start, stride, logits.shape[2])
                    part = logits[:, high, wide]
                    part = part * down.weights(logits.shape[1], stride)[high, None].to(part.device)
                    part *= tile.weights(logits.shape[2], stride)[wide].to(part.device)
                    key = (rows.start, columns.start)
                    if key in waiting:
                        part += waiting.pop(key)
                    if not (rows.complete and columns.complete):
                        waiting[key] = part
                        continue
                    inner = _Inner(
                        stride,
                        _within(rows, high.start * stride + down.seen.start),
                        _within(columns, wide.start * stride + tile.seen.start),
                    )
                    yield (
                        *(slice(rows.start, rows.stop), slice(columns.start, columns.stop)),
                        *(part, inner),
                    )


def _looked_at(
    look: Callable[[NDArray[np.uint8]], Tensor],
    image: NDArray[np.uint8],
    rows: slice,
    columns: slice,
) -> tuple[Tensor, int]:
    """Return the logits of a tile and how many pixels a cell has on each side.

    What the grid adds beyond the image repeats its border, so cells lie on multiples of the stride
    in tiles at the border too; cells that lie in it are left out.
    """
    part = image[rows, columns]
    height, width = part.shape[:2]
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    if (high, wide) != (height, width):
        missing = (0, high - height, 0, wide - width)
        part = np.asarray(cv2.copyMakeBorder(part, *missing, cv2.BORDER_REPLICATE), np.uint8)
    logits = look(part)
    stride = max(1, high // logits.shape[-2])
    fits = (logits.shape[-2] * stride, logits.shape[-1] * stride) == (high, wide)
    if not fits or _GRID_PX % stride:
        logits = F.interpolate(logits[None], (high, wide), mode="bilinear", align_corners=False)[0]
        stride = 1
    return logits[:, : -(-height // stride), : -(-width // stride)], stride


def _cells(part: _Part, begin: int, stride: int, count: int) -> slice:
    """Return which of a tile's `count` cells a part needs to be enlarged: its own, one around."""
    first = (part.start - begin) // stride - 1
    behind = -(-(part.stop - begin) // stride) + 1
    return slice(max(0, first), min(behind, count))


def _within(part: _Part, start: int) -> slice:
    return slice(part.start - start, part.stop - start)
