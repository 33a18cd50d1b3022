"""Render images for viewing: coloured masks, overlays, confidence maps and comparison sheets."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
_GAP = 6
_TITLE = 24


def color_mask(labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> ImageArray:
    """Return (H, W) class ids as an (H, W, 3) RGB image; black for pixels without a class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8)
    return np.asarray(table[labels], np.uint8)


def overlay(image: ImageArray, mask: ImageArray, *, opacity: float = 0.5) -> ImageArray:
    """Blend a coloured mask over an RGB image of the same size."""
    return np.asarray(cv2.addWeighted(image, 1 - opacity, mask, opacity, 0), np.uint8)


def confidence_image(confidence: NDArray[np.float32]) -> ImageArray:
    """Return (H, W) confidence in [0, 1] as grey values 0..255; NaN becomes black."""
    return np.asarray(np.clip(np.rint(np.nan_to_num(confidence) * 255), 0, 255), np.uint8)


def comparison_sheet(rows: Sequence[Sequence[ImageArray]], titles: Sequence[str]) -> ImageArray:
    """Arrange rows of RGB images on one sheet with a title above each column.

    All images of a row have the same size. Rows are resized to the width of the first row, keeping
    their aspect ratio.
    """
    width = rows[0][0].shape[1]
    strips = [_in_a_row([_title(title, width) for title in titles], gap_below=0)]
    for row in rows:
        fitted = [_resize_to_width(picture, width) for picture in row]
        strips.append(_in_a_row(fitted, gap_below=_GAP))
    return np.vstack(strips)[:, :-_GAP]


def _in_a_row(pictures: Sequence[ImageArray], gap_below: int) -> ImageArray:
    gaps = ((0, gap_below), (0, _GAP), (0, 0))
    return np.hstack([np.pad(picture, gaps, constant_values=255) for picture in pictures])


def _resize_to_width(picture: ImageArray, width: int) -> ImageArray:
    if picture.shape[1] == width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    # nearest neighbour, because interpolation would give a mask colours of no class
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
    )


def _title(title: str, width: int) -> ImageArray:
    """Return a strip of `width` pixels with a title, scaled down to fit."""
    strip = np.full((_TITLE, width, 3), 255, np.uint8)
    (text_width, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    _write(strip, title, (4, _TITLE - 8), 0.5 * min(1.0, (width - 8) / max(1, text_width)))
    return strip


def _write(image: ImageArray, text: str, position: tuple[int, int], size: float) -> None:
    cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def legend(names: Sequence[str], colors: Sequence[tuple[int, int, int]], width: int) -> ImageArray:
    """Return an image of `width` pixels that shows each class name next to its colour."""
    cell, line = 150, 22
    columns = max(1, width // cell)
    lines = -(-len(names) // columns)
    strip = np.full((lines * line + 4, width, 3), 255, np.uint8)
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        left, top = index % columns * cell + 4, index // columns * line + 4
        rgb = tuple(int(part) for part in color)
        cv2.rectangle(strip, (left, top), (left + 16, top + 14), rgb, cv2.FILLED)
        _write(strip, name, (left + 22, top + 12), 0.45)
    return strip
