"""Label files in their published formats, read as ids."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import PNG_SIGNATURE, png_bit_depth, png_pixel_format
from udaseg.data.files.images import checked_bytes, decode, decode_as_stored, read_bytes
from udaseg.errors import DataError

LabelFormat = Literal["ids", "rgb", "synthia"]


def read_train_ids(path: Path) -> NDArray[np.uint8]:
    """Return a prepared label as (H, W) uint8 train ids.

    Raises:
        DataError: The file is unreadable, or not an 8-bit single-channel PNG.
    """
    try:
        labels = decode(path, read_bytes(path), cv2.IMREAD_UNCHANGED)
    except DataError as error:
        raise DataError(f"{error}; run `udaseg prepare` again") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path}: is not a prepared label (8-bit, one channel)")
    return np.asarray(labels, np.uint8)


def read_label_ids(
    path: Path, label_format: LabelFormat, *, data: bytes | None = None
) -> NDArray[Any]:
    """Return the raw ids of a label file, (H, W) uint8, uint16 or int32.

    Palette images return their indices, which OpenCV would turn into colours. SYNTHIA's 16-bit
    images return their first RGB channel, which Pillow would read as zeros. Colours return
    r << 16 | g << 8 | b.

    Args:
        path: The label file.
        label_format: How the ids are stored.
        data: Content of the file, if already read.

    Raises:
        DataError: The file is unreadable, damaged, or its format cannot store ids.
    """
    return _READERS[label_format](path, checked_bytes(path, data))


def _read_ids(path: Path, data: bytes) -> NDArray[Any]:
    """Return the ids of a single-channel or palette image."""
    _refuse_jpeg(path, data)
    form = png_pixel_format(data)
    if form == "8-bit gray":
        # OpenCV decodes faster than Pillow; if it fails, Pillow below gives the reason
        with contextlib.suppress(DataError):
            grey = decode(path, data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
            if grey.ndim == 2 and grey.dtype == np.uint8:
                return grey
    mode, pixels = decode_as_stored(path, data, in_color=False)
    if mode in ("P", "I;16"):
        return pixels
    if mode == "I":
        return pixels.astype(np.int32)
    if mode in ("1", "L"):
        # Pillow scales grey of 1, 2 and 4 bits to 0..255; undo this to get the stored ids
        bits = png_bit_depth(data) if data.startswith(PNG_SIGNATURE) else {"1": 1, "L": 8}[mode]
        return pixels // np.uint8(255 // (2 ** min(bits, 8) - 1))
    raise DataError(
        f"{path}: label_format ids needs one channel, but the image is {mode}; "
        + (
            f"use label_format synthia for ids in {form}"
            if form.startswith("16-bit")
            else "use label_format rgb for colour-coded labels"
        )
    )


def _read_rgb(path: Path, data: bytes) -> NDArray[Any]:
    """Return r << 16 | g << 8 | b of an 8-bit colour or palette image."""
    _refuse_jpeg(path, data)
    form = png_pixel_format(data)
    mode, pixels = decode_as_stored(path, data, in_color=True)
    if mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{path}: label_format rgb needs colours, but the image is {mode}")
    if form.startswith("16-bit"):  # Pillow would drop the lower half of each channel
        raise DataError(f"{path}: label_format rgb needs 8 bits, but the image is {form}")
    rgb = pixels.astype(np.int32)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _read_synthia(path: Path, data: bytes) -> NDArray[Any]:
    """Return the first RGB channel of a 16-bit colour PNG."""
    form = png_pixel_format(data)
    if form not in ("16-bit RGB", "16-bit RGBA"):
        raise DataError(
            f"{path}: label_format synthia needs three channels of 16 bits, but the image is "
            f"{form or 'not a PNG'}"
        )
    channels = decode(path, data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(channels[..., 2])  # OpenCV orders blue, green, red


def _refuse_jpeg(path: Path, data: bytes) -> None:
    if data.startswith(b"\xff\xd8"):
        raise DataError(f"{path}: JPEG compression changes ids; store labels losslessly (PNG)")


_READERS: Mapping[LabelFormat, Callable[[Path, bytes], NDArray[Any]]] = {
    "ids": _read_ids,
    "rgb": _read_rgb,
    "synthia": _read_synthia,
}
