"""Write images that are stored turned, with the tag that says so, and their upright twins."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import files

CONTAINERS = {
    "jpeg": (".jpg", {"format": "JPEG", "quality": 95}),
    "png": (".png", {"format": "PNG"}),
    "webp": (".webp", {"format": "WEBP", "lossless": True}),
    "tiff": (".tif", {"format": "TIFF"}),
    "tiff-lzw": (".tif", {"format": "TIFF", "compression": "tiff_lzw"}),
}
_TURN = Image.Transpose
_UPRIGHT = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
"""How Pillow turns each orientation upright."""

_STORED = {**_UPRIGHT, 6: _TURN.ROTATE_90, 8: _TURN.ROTATE_270}


def _turned(pixels, how):
    if how is None:
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).transpose(how))


def as_shown(stored, orientation):
    """Return stored pixels as a viewer shows them."""
    return _turned(stored, _UPRIGHT.get(orientation))


def as_stored(upright, orientation):
    """Return upright pixels as a file of that orientation stores them."""
    return _turned(upright, _STORED.get(orientation))


def tagged(stored, container, orientation):
    """Return the content of a file with these stored pixels and the orientation in its tags."""
    _, how = CONTAINERS[container]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, exif=exif, **how)
    return buffer.getvalue()


def decoded(stored, container):
    """Return the pixels that a file of the container gives back, without any turning."""
    _, how = CONTAINERS[container]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, **how)
    return np.asarray(Image.open(buffer).convert("RGB"))


def write_twins(folder: Path, images, truths, container, orientation, *, labels: str) -> None:
    """Write a set of turned images to `folder`/turned.yaml, and its twin to `folder`/twin.yaml.

    Args:
        folder: Both sets are below it.
        images: Upright RGB images.
        truths: Their upright ids.
        container: A key of `CONTAINERS`.
        orientation: EXIF orientation of all images of the one set.
        labels: How its labels lie: `stored` or `upright`; those of the twin are upright.
    """
    suffix, _ = CONTAINERS[container]
    for index, (image, truth) in enumerate(zip(images, truths, strict=True)):
        stored = as_stored(image, orientation)
        files.put(folder / f"turned/images/{index}{suffix}", tagged(stored, container, orientation))
        drawn = as_stored(truth, orientation) if labels == "stored" else truth
        files.put(folder / f"turned/labels/{index}.png", files.gray_png(drawn))
        twin = as_shown(decoded(stored, container), orientation)
        files.put(folder / f"twin/images/{index}.png", files.coded(Image.fromarray(twin), "PNG"))
        files.put(folder / f"twin/labels/{index}.png", files.gray_png(truth))
    for name, more in (("turned", f"orientation: {labels}\n"), ("twin", "")):
        text = (
            f"name: {name}\nroot: {name}\n"
            "images: {train: images/*, val: images/*}\nlabels: {train: labels/*, val: labels/*}\n"
            "classes:\n"
            "  - {name: road, ids: [0], color: [128, 64, 128]}\n"
            "  - {name: sky, ids: [1], color: [70, 130, 180]}\n"
            "  - {name: car, ids: [2], color: [0, 0, 142]}\n"
            f"ignore: [255]\n{more}"
        )
        files.dataset_yaml(folder, text, f"{name}.yaml")
