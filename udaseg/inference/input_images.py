"""Images to predict, from files, arrays, tensors and Pillow images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from udaseg.data.files.bands import Bands
from udaseg.data.files.bit_depth import largest_value
from udaseg.data.files.images import Pixels, read_bytes, read_values, to_uint8
from udaseg.data.files.orientation import orientation_of, to_upright, turned_size
from udaseg.inference.options import MAX_PIXELS

ImageSource: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | Tensor
"""What `Model.predict` takes: a file, an (H, W, 3) array, a Pillow image or a (3, H, W) tensor."""


@dataclass(frozen=True)
class InputImage:
    """An image to predict.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, as stored.
        orientation: EXIF orientation, 1 to 8.
        path: Its file, if it has one.
        frame: Its index in a video; None for an image.
        peak: The largest value of a 16-bit image file; None for others.
    """

    pixels: Pixels
    orientation: int = 1
    path: Path | None = None
    frame: int | None = None
    peak: int | None = None

    def upright(self) -> Pixels:
        """Return the pixels as viewers show them."""
        return to_upright(self.pixels, self.orientation)

    @property
    def upright_size(self) -> tuple[int, int]:
        """The (height, width) of the upright image."""
        return turned_size((self.pixels.shape[0], self.pixels.shape[1]), self.orientation)


def read_input_image(path: Path, bits: int | None = None, bands: Bands | None = None) -> InputImage:
    """Return the image in a file; for `bits` see `to_uint8`, for `bands` `read_values`."""
    data = read_bytes(path)
    values = read_values(path, data=data, max_pixels=MAX_PIXELS, bands=bands)
    pixels, peak = to_uint8(path, values, bits), largest_value(values)
    return InputImage(pixels, orientation_of(data), path, peak=peak)


def to_input_image(
    source: ImageSource, bits: int | None = None, bands: Bands | None = None
) -> InputImage:
    """Return the image that a path, array, Pillow image or tensor contains.

    `bits` are those of 16-bit files and Pillow images, see `to_uint8`, `bands` those of files.
    """
    if isinstance(source, str | os.PathLike):
        return read_input_image(Path(source), bits, bands)
    if isinstance(source, Image.Image):
        return _from_pillow(source, bits)
    if isinstance(source, Tensor):
        return InputImage(_pixels_of_tensor(source))
    if not isinstance(source, np.ndarray):
        raise TypeError(
            "an image is a path, a numpy array, a Pillow image or a tensor, "
            f"got {type(source).__name__}"
        )
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
        raise ValueError(
            f"an image array must be (H, W, 3) uint8 RGB, got {source.shape} {source.dtype}"
        )
    return InputImage(source.copy(order="C"))  # a caller may reuse the array


def _from_pillow(picture: Image.Image, bits: int | None) -> InputImage:
    if picture.mode.startswith("I;16"):
        name = Path(getattr(picture, "filename", "") or "the image")
        grey = to_uint8(name, np.asarray(picture).astype(np.uint16), bits)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    elif picture.mode in ("I", "F"):
        raise ValueError(
            f"a Pillow image of mode {picture.mode} has no defined range; convert it to RGB"
        )
    elif "transparency" in picture.info:
        pixels = np.array(picture.convert("RGBA").convert("RGB"))
    else:
        pixels = np.array(picture.convert("RGB"))
    # read after the pixels: Pillow turns a TIFF upright, and removes this entry, when it loads them
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return InputImage(pixels, orientation if orientation in range(1, 9) else 1)


def _pixels_of_tensor(tensor: Tensor) -> Pixels:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        raise ValueError(f"an image tensor must be (3, H, W) RGB, got {tuple(tensor.shape)}")
    values = tensor.detach().cpu()
    if values.is_floating_point():
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError(
                "an image tensor of floats must be in [0, 1], without normalisation, "
                f"got {values.min().item():g} to {values.max().item():g}"
            )
        values = (values.float() * 255).round().to(torch.uint8)
    elif values.dtype != torch.uint8:
        raise ValueError(f"an image tensor must be uint8 or float, got {values.dtype}")
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
