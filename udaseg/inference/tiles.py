"""Predict images of any size in tiles, with bounded memory for the network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg.inference.labels import labels_from_logits
from udaseg.inference.sizes import MAX_WHOLE_PIXELS
from udaseg.inference.windows import Network, predict_logits
from udaseg.models.pixels import image_batch

_CORE_PX = 1024
_MARGIN_PX = 256
_RAMP_PX = 128  # half the width over which neighbouring tiles are blended
_GRID_PX = 32  # multiple of every network's stride; tile sides are multiples of it
_SEAM_PX = _RAMP_PX + _GRID_PX
_Predict: TypeAlias = Callable[[NDArray[np.uint8]], Tensor]
LabelsAndConfidence: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32] | None]


@dataclass(frozen=True)
class TileOptions:
    """How to predict one image.

    Attributes:
        device: Device of the network.
        window: Sliding window (height, width) inside the image or each tile.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        confidence: Also return the probability of each label.
        temperature: Temperature of these probabilities; labels do not depend on it.
    """

    device: torch.device
    window: tuple[int, int] | None = None
    flip: bool = False
    scales: Sequence[float] = (1.0,)
    confidence: bool = False
    temperature: float = 1.0


def label_image(
    model: Network,
    image: NDArray[np.uint8],
    size: tuple[int, int],
    options: TileOptions,
    *,
    max_whole_pixels: int = MAX_WHOLE_PIXELS,
) -> LabelsAndConfidence:
    """Return the labels of an image at `size`, and optionally their probabilities.

    Up to `max_whole_pixels`, the network gets the whole image (or windows of it). Larger images are
    predicted in tiles of 1024 pixels plus 256 on each side. Neighbouring tiles are blended linearly
    over 256 pixels. The outermost 128 pixels of a tile, which have the least context, are not used.
    Tiles begin at multiples of 256, so the cells of a network of any stride have the same positions
    as in a whole image.

    Args:
        model: In evaluation mode, on the device of `options`.
        image: (H, W, 3) uint8 RGB at the network's input size.
        size: (height, width) of the result.
        options: Options of the prediction.
        max_whole_pixels: Maximum pixels to predict in one piece.

    Returns:
        Labels (H, W) uint8, and confidence (H, W) float32 or None.
    """

    def predict(pixels: NDArray[np.uint8]) -> Tensor:
        tensor = image_batch([pixels], options.device)
        return predict_logits(
            model, tensor, window=options.window, flip=options.flip, scales=options.scales
        )

    height, width = image.shape[:2]
    if height * width <= max_whole_pixels:
        return _labels(predict(image), size, options)
    labels, probabilities = _label_tiles(predict, image, options)
    if size == (height, width):
        return labels, probabilities
    return _resize(labels, probabilities, size)


def _labels(logits: Tensor, size: tuple[int, int], options: TileOptions) -> LabelsAndConfidence:
    return labels_from_logits(
        logits, size, confidence=options.confidence, temperature=options.temperature
    )


def _label_tiles(
    predict: _Predict, image: NDArray[np.uint8], options: TileOptions
) -> LabelsAndConfidence:
    """Return the labels of an image at its own size, and optionally their probabilities."""
    size = image.shape[:2]
    labels = np.empty(size, np.uint8)
    probabilities = np.empty(size, np.float32) if options.confidence else None
    for rows, columns, logits, inner in _blended_parts(predict, image):
        stride = inner.stride
        enlarged_size = (logits.shape[-2] * stride, logits.shape[-1] * stride)
        part_labels, part_probabilities = _labels(logits, enlarged_size, options)
        labels[rows, columns] = part_labels[inner.rows, inner.columns]
        if probabilities is not None and part_probabilities is not None:
            probabilities[rows, columns] = part_probabilities[inner.rows, inner.columns]
    return labels, probabilities


def _resize(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32] | None, size: tuple[int, int]
) -> LabelsAndConfidence:
    cv2_size = (size[1], size[0])
    resized = cv2.resize(labels, cv2_size, interpolation=cv2.INTER_NEAREST_EXACT)
    if probabilities is not None:
        probabilities = np.asarray(cv2.resize(probabilities, cv2_size), np.float32)
    return np.asarray(resized, np.uint8), probabilities


@dataclass(frozen=True)
class _Range:
    """A range along one side covered by the same tiles: the inside of a tile, or a seam.

    Attributes:
        start: First pixel.
        stop: One past the last pixel.
        complete: No later tile contributes to it.
    """

    start: int
    stop: int
    complete: bool

    def pixels_after(self, start: int) -> slice:
        """Return the range as a slice of the pixels from `start` on."""
        return slice(self.start - start, self.stop - start)


@dataclass(frozen=True)
class _Tile:
    """A tile along one side.

    Attributes:
        input_range: Network input; it may extend beyond the image up to the grid.
        parts: Ranges that the tile contributes to.
        begin: Position of the seam with the previous tile, or None.
        end: Position of the seam with the next tile, or None.
    """

    input_range: slice
    parts: tuple[_Range, ...]
    begin: int | None
    end: int | None

    def cells(self, part: _Range, stride: int, count: int) -> slice:
        """Return the slice of the `count` cells that enlarge a part: its own and one around."""
        first = (part.start - self.input_range.start) // stride - 1
        stop = -(-(part.stop - self.input_range.start) // stride) + 1
        return slice(max(0, first), min(stop, count))

    def pixels(self, part: _Range, cells: slice, stride: int) -> slice:
        """Return the slice of a part inside its enlarged cells."""
        return part.pixels_after(cells.start * stride + self.input_range.start)

    def weights(self, cells: int, stride: int) -> Tensor:
        """Return (cells,) blending weights of its cells; those of overlapping tiles sum to one."""
        positions = (torch.arange(cells) + 0.5) * stride + self.input_range.start
        weight = torch.ones(cells)
        if self.begin is not None:
            weight *= ((positions - self.begin) / (2 * _RAMP_PX) + 0.5).clamp(0, 1)
        if self.end is not None:
            weight *= (0.5 - (positions - self.end) / (2 * _RAMP_PX)).clamp(0, 1)
        return weight


@dataclass(frozen=True)
class _PartPosition:
    """Position of a part inside its enlarged logits, which extend one cell beyond it per side."""

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
        parts = [] if begin is None else [_Range(start - _SEAM_PX, first, complete=True)]
        if first < last:
            parts.append(_Range(first, last, complete=True))
        if end is not None:
            parts.append(_Range(last, min(stop + _SEAM_PX, side), complete=False))
        beyond = min(-(-side // _GRID_PX) * _GRID_PX, stop + _MARGIN_PX)
        input_range = slice(max(0, start - _MARGIN_PX), beyond)
        tiles.append(_Tile(input_range, tuple(parts), begin, end))
    return tuple(tiles)


def _blended_parts(
    predict: _Predict, image: NDArray[np.uint8]
) -> Iterator[tuple[slice, slice, Tensor, _PartPosition]]:
    """Yield each part of an image once, with its logits.

    A part shared by several tiles is kept until the last of them was predicted. These are the seams
    of one row of tiles, so memory grows only with the width of the image.

    Yields:
        Rows and columns of the part, the logits (K, h, w) of its cells and their neighbours, and
            the position of the part in these logits after enlargement to pixels.
    """
    incomplete: dict[tuple[int, int], Tensor] = {}
    for row_tile, column_tile in product(_tiles(image.shape[0]), _tiles(image.shape[1])):
        logits, stride = _tile_logits(predict, image, row_tile.input_range, column_tile.input_range)
        row_weights = row_tile.weights(logits.shape[1], stride)
        column_weights = column_tile.weights(logits.shape[2], stride)
        for rows, columns in product(row_tile.parts, column_tile.parts):
            cell_rows = row_tile.cells(rows, stride, logits.shape[1])
            cell_columns = column_tile.cells(columns, stride, logits.shape[2])
            weighted = logits[:, cell_rows, cell_columns]
            weighted = weighted * row_weights[cell_rows, None].to(weighted.device)
            weighted *= column_weights[cell_columns].to(weighted.device)
            key = (rows.start, columns.start)
            if key in incomplete:
                weighted += incomplete.pop(key)
            if not (rows.complete and columns.complete):
                incomplete[key] = weighted
                continue
            position = _PartPosition(
                stride,
                row_tile.pixels(rows, cell_rows, stride),
                column_tile.pixels(columns, cell_columns, stride),
            )
            yield rows.pixels_after(0), columns.pixels_after(0), weighted, position


def _tile_logits(
    predict: _Predict,
    image: NDArray[np.uint8],
    rows: slice,
    columns: slice,
) -> tuple[Tensor, int]:
    """Return the logits of a tile, and the number of pixels per cell.

    The padding up to the grid repeats the border, so cells lie on multiples of the stride in border
    tiles too; cells in the padding are removed.
    """
    pixels = image[rows, columns]
    height, width = pixels.shape[:2]
    padded_height, padded_width = rows.stop - rows.start, columns.stop - columns.start
    if (padded_height, padded_width) != (height, width):
        padding = (0, padded_height - height, 0, padded_width - width)
        pixels = np.asarray(cv2.copyMakeBorder(pixels, *padding, cv2.BORDER_REPLICATE), np.uint8)
    logits = predict(pixels)
    stride = max(1, padded_height // logits.shape[-2])
    fits = (logits.shape[-2] * stride, logits.shape[-1] * stride) == (padded_height, padded_width)
    if not fits or _GRID_PX % stride:
        logits = F.interpolate(
            logits[None], (padded_height, padded_width), mode="bilinear", align_corners=False
        )[0]
        stride = 1
    return logits[:, : -(-height // stride), : -(-width // stride)], stride
