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
    fitted = [[_resize_to_width(picture, width) for picture in row] for row in rows]
    height = _TITLE + sum(row[0].shape[0] + _GAP for row in fitted)
    sheet = np.full((height, len(titles) * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        left = column * (width + _GAP)
        _write_title(sheet[:_TITLE, left : left + width], title)
    top = _TITLE
    for row in fitted:
        height = row[0].shape[0]
        for column, picture in enumerate(row):
            left = column * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture
        top += height + _GAP
    return sheet


def _resize_to_width(picture: ImageArray, width: int) -> ImageArray:
    if picture.shape[1] == width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    # nearest neighbour, because interpolation would give a mask colours of no class
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8
    )


def _write_title(strip: ImageArray, title: str) -> None:
    """Write a title into a strip of the sheet, scaled down to fit."""
    (text_width, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    size = 0.5 * min(1.0, (strip.shape[1] - 8) / max(1, text_width))
    position = (4, _TITLE - 8)
    cv2.putText(strip, title, position, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


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
        position = (left + 22, top + 12)
        cv2.putText(
            strip, name, position, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
    return strip
