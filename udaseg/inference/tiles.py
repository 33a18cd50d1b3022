"""Predict images of any size in tiles, with bounded memory for the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.files.images import Pixels
from udaseg.data.loading.transforms import resize_labels
from udaseg.inference.labels import labels_from_logits
from udaseg.inference.windows import Network, predict_batch
from udaseg.models.pixels import image_batch
from udaseg.sizes import Size

_CORE_PX = 1024
_MARGIN_PX = 256
_RAMP_PX = 128  # half the width over which neighbouring tiles are blended
_GRID_PX = 32  # multiple of every network's stride; tile sides are multiples of it
_SEAM_PX = _RAMP_PX + _GRID_PX
LabelsAndConfidence: TypeAlias = tuple[Pixels, NDArray[np.float32] | None]


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
        align_corners: Enlarge logits so that the outermost cells lie on the outermost pixels.
    """

    device: torch.device
    window: Size | None = None
    flip: bool = False
    scales: Sequence[float] = (1.0,)
    confidence: bool = False
    temperature: float = 1.0
    align_corners: bool = False


def image_logits(model: Network, images: Sequence[Pixels], options: TileOptions) -> Tensor:
    """Return the logits (N, K, h, w) of images of one size."""
    return predict_batch(
        model,
        image_batch(images, options.device),
        window=options.window,
        flip=options.flip,
        scales=options.scales,
        align_corners=options.align_corners,
    )


def label_in_tiles(
    model: Network, image: Pixels, size: Size, options: TileOptions
) -> LabelsAndConfidence:
    """Return the labels of a large image at `size`, and optionally their probabilities.

    The tiles have 1024 pixels plus 256 on each side. Neighbouring tiles are blended linearly over
    256 pixels. The outermost 128 pixels of a tile, which have the least context, are not used.
    Tiles begin at multiples of 256, so the cells of a network of any stride have the same positions
    as in a whole image.
    """
    labels, probabilities = _label_tiles(model, image, options)
    if probabilities is not None and size != labels.shape:
        probabilities = np.asarray(cv2.resize(probabilities, (size[1], size[0])), np.float32)
    return resize_labels(labels, size), probabilities


def label_logits(logits: Tensor, size: Size, options: TileOptions) -> LabelsAndConfidence:
    """Return the labels of logits (K, h, w) at `size`, and optionally their probabilities."""
    return labels_from_logits(
        logits,
        size,
        confidence=options.confidence,
        temperature=options.temperature,
        align_corners=options.align_corners,
    )


def _label_tiles(model: Network, image: Pixels, options: TileOptions) -> LabelsAndConfidence:
    """Return the labels of an image at its own size, and optionally their probabilities.

    A part shared by several tiles is kept until the last of them was predicted. These are the seams
    of one row of tiles, so memory grows only with the width of the image.
    """
    labels = np.empty(image.shape[:2], np.uint8)
    probabilities = np.empty(labels.shape, np.float32) if options.confidence else None
    incomplete: dict[tuple[int, int], Tensor] = {}
    for row_tile, column_tile in product(_tiles(image.shape[0]), _tiles(image.shape[1])):
        logits, stride = _tile_logits(model, image, row_tile.input, column_tile.input, options)
        row_weights = row_tile.weights(logits.shape[1], stride).to(logits.device)
        column_weights = column_tile.weights(logits.shape[2], stride).to(logits.device)
        for rows, columns in product(row_tile.parts, column_tile.parts):
            cell_rows, inner_rows = row_tile.cells(rows, stride, logits.shape[1])
            cell_columns, inner_columns = column_tile.cells(columns, stride, logits.shape[2])
            part = logits[:, cell_rows, cell_columns] * row_weights[cell_rows, None]
            part *= column_weights[cell_columns]
            key = (rows.pixels.start, columns.pixels.start)
            part += incomplete.pop(key, 0)
            if not (rows.complete and columns.complete):
                incomplete[key] = part
                continue
            enlarged_size = (part.shape[1] * stride, part.shape[2] * stride)
            part_labels, part_probabilities = label_logits(part, enlarged_size, options)
            labels[rows.pixels, columns.pixels] = part_labels[inner_rows, inner_columns]
            if probabilities is not None and part_probabilities is not None:
                inner = part_probabilities[inner_rows, inner_columns]
                probabilities[rows.pixels, columns.pixels] = inner
    return labels, probabilities


@dataclass(frozen=True)
class _Part:
    """Pixels along one side that the same tiles cover: the inside of a tile, or a seam.

    Attributes:
        complete: No later tile contributes to them.
    """

    pixels: slice
    complete: bool


@dataclass(frozen=True)
class _Tile:
    """A tile along one side.

    Attributes:
        input: Network input; it may extend beyond the image up to the grid.
        parts: What the tile contributes to.
        begin: Position of the seam with the previous tile; infinite without one.
        end: Position of the seam with the next tile; infinite without one.
    """

    input: slice
    parts: Sequence[_Part]
    begin: float
    end: float

    def cells(self, part: _Part, stride: int, count: int) -> tuple[slice, slice]:
        """Return the slice of the `count` cells that enlarge a part, and of the part in them.

        The cells are its own and one around.
        """
        start, stop = part.pixels.start - self.input.start, part.pixels.stop - self.input.start
        cells = slice(max(0, start // stride - 1), min(-(-stop // stride) + 1, count))
        return cells, slice(start - cells.start * stride, stop - cells.start * stride)

    def weights(self, cells: int, stride: int) -> Tensor:
        """Return (cells,) blending weights of its cells; those of overlapping tiles sum to one."""
        positions = (torch.arange(cells) + 0.5) * stride + self.input.start
        rising = ((positions - self.begin) / (2 * _RAMP_PX) + 0.5).clamp(0, 1)
        falling = (0.5 - (positions - self.end) / (2 * _RAMP_PX)).clamp(0, 1)
        return torch.mul(rising, falling)


def _tiles(side: int) -> list[_Tile]:
    """Return the tiles along one side of an image."""
    tiles = []
    side_on_grid = -(-side // _GRID_PX) * _GRID_PX
    for start in range(0, side, _CORE_PX):
        stop = min(side, start + _CORE_PX)
        is_first, is_last = start == 0, stop == side
        inside = slice(
            0 if is_first else min(start + _SEAM_PX, side), side if is_last else stop - _SEAM_PX
        )
        parts = [] if is_first else [_Part(slice(start - _SEAM_PX, inside.start), complete=True)]
        if inside.start < inside.stop:
            parts.append(_Part(inside, complete=True))
        if not is_last:
            parts.append(_Part(slice(inside.stop, min(stop + _SEAM_PX, side)), complete=False))
        tiles.append(
            _Tile(
                slice(max(0, start - _MARGIN_PX), min(side_on_grid, stop + _MARGIN_PX)),
                parts,
                begin=-math.inf if is_first else start,
                end=math.inf if is_last else stop,
            )
        )
    return tiles


def _tile_logits(
    model: Network, image: Pixels, rows: slice, columns: slice, options: TileOptions
) -> tuple[Tensor, int]:
    """Return the logits of a tile, and the number of pixels per cell.

    The padding up to the grid repeats the border, so cells lie on multiples of the stride in border
    tiles too; cells in the padding are removed. Where cells are not multiples of pixels, as with
    aligned corners, the logits are those of pixels.
    """
    pixels = image[rows, columns]
    height, width = pixels.shape[:2]
    padded_size = (rows.stop - rows.start, columns.stop - columns.start)
    padding = ((0, padded_size[0] - height), (0, padded_size[1] - width), (0, 0))
    logits = image_logits(model, [np.pad(pixels, padding, mode="edge")], options)[0]
    stride = max(1, padded_size[0] // logits.shape[-2])
    fits = (logits.shape[-2] * stride, logits.shape[-1] * stride) == padded_size
    if options.align_corners or not fits or _GRID_PX % stride:
        (logits,) = F.interpolate(
            logits[None], padded_size, mode="bilinear", align_corners=options.align_corners
        )
        stride = 1
    return logits[:, : -(-height // stride), : -(-width // stride)], stride
