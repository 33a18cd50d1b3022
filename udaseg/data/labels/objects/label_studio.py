"""Label format `label_studio`: the tasks of a project in one JSON file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.headers import MAX_PIXELS
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.data.files.orientation import Size
from udaseg.data.labels.objects.drawing import (
    Area,
    LabelledImage,
    Mask,
    draw_areas,
    ellipse_mask,
    explained,
    polygon_mask,
    read_document,
    turned_mask,
)
from udaseg.errors import DataError

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_KINDS = ("rle", "points", "radiusX", "imageDataURL", "height")
"""The values that tell a brush, a polygon, an ellipse, a bit mask and a rectangle."""


def read(path: Path, data: bytes) -> list[LabelledImage]:
    """Return the images of an export of Label Studio: brushes, polygons, boxes and ellipses.

    A task counts with one annotation: the ground truth, otherwise the last one. Tasks without an
    annotation are left out. Regions are drawn in the order of the file.

    Raises:
        DataError: The file is not in the JSON format of Label Studio.
    """
    document = read_document(path, data)
    tasks = document if isinstance(document, list) else [document]
    images = []
    for number, task in enumerate(tasks, 1):
        with explained(path, f"task {number}"):
            if "data" not in task or "annotations" not in task:
                raise DataError(
                    f"{path}: task {number} has no data or annotations; export the project as JSON"
                )
            annotations = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if annotations:
                # max returns the first of several
                best = max(reversed(annotations), key=lambda each: bool(each.get("ground_truth")))
                images.append(_image(path, number, task, best["result"]))
    return images


def _image(
    path: Path, number: int, task: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> LabelledImage:
    regions = [region for region in results if _kind(region.get("value", {}))]
    sizes = {(int(each["original_height"]), int(each["original_width"])) for each in regions}
    if len(sizes) > 1:
        raise DataError(f"{path}: task {number} has regions for images of several sizes")
    areas = [
        Area(_label(region["value"]), partial(_draw, path, number, region["value"]))
        for region in regions
    ]
    names = tuple(dict.fromkeys(_names(task)))
    return LabelledImage(names, sizes.pop() if sizes else None, partial(draw_areas, areas))


def _names(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield names of the image, also without the prefix that an upload gets."""
    texts = [task.get("file_upload"), *task["data"].values()]
    for text in texts:
        if not isinstance(text, str):
            continue
        parts = urlsplit(text)
        path = PurePosixPath((parse_qs(parts.query).get("d") or [unquote(parts.path)])[0])
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield str(path)
            yield str(path.with_name(_UPLOAD_PREFIX.sub("", path.name)))


def _kind(value: Mapping[str, Any]) -> str:
    return next((kind for kind in _KINDS if kind in value), "")


def _label(value: Mapping[str, Any]) -> str:
    labels = next((each for key, each in value.items() if key.endswith("labels") and each), None)
    if labels is None:
        raise ValueError("a region has no label")
    return str(labels[0])


def _draw(path: Path, number: int, value: Mapping[str, Any], size: Size) -> Mask:
    with explained(path, f"task {number}"):
        match _kind(value):
            case "rle":
                alpha = decode_brush(value["rle"]).reshape(*size, 4)[..., 3]
                return alpha > 0
            case "imageDataURL":
                raise ValueError("a region was drawn with BitMask, which is not read; use Brush")
            case "points":
                corners = [part for x, y in value["points"] for part in _pixels(x, y, size)]
                return polygon_mask([corners], size)
            case "radiusX":
                radii = _pixels(value["radiusX"], value["radiusY"], size)
                center = _pixels(value["x"], value["y"], size)
                return ellipse_mask(center, radii, float(value.get("rotation", 0)), size)
            case _:
                return _box_mask(value, size)


def _pixels(x: float, y: float, size: Size) -> tuple[float, float]:
    """Return a point in pixels that is given in percent."""
    return x * size[1] / 100, y * size[0] / 100


def _box_mask(value: Mapping[str, Any], size: Size) -> Mask:
    """Return the pixels of a rectangle, which is turned about its upper left corner."""
    corner = _pixels(value["x"], value["y"], size)
    width, height = _pixels(value["width"], value["height"], size)
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    return turned_mask(corners, corner, value.get("rotation", 0), size)


def decode_brush(rle: Sequence[int]) -> NDArray[np.uint8]:
    """Return the values of a brush: red, green, blue and alpha of each pixel.

    The format is that of thi.ng/rle-pack: the number of values in 32 bits, the bits of a value
    less 1 in 5, the bits of the four sizes of a run less 1 in 4 each. Then runs: a bit that says
    whether a value is repeated, two bits for the size, the length less 1, and the value or values.

    Raises:
        ValueError: The list is not such a text, or ends early.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    values, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if word > 8 or values > 4 * MAX_PIXELS:
        raise ValueError(f"a brush has {values} values of {word} bits")
    out = np.zeros(values, np.uint8)
    done = 0
    while done < values:
        repeats = take(1)
        end = done + take(sizes[take(2)]) + 1
        if end > values or position > len(bits):
            raise ValueError("a brush ends early")
        out[done:end] = take(word) if repeats else [take(word) for _ in range(done, end)]
        done = end
    return out


def encode_brush(mask: Mask) -> list[int]:
    """Return a (H, W) mask as a brush; see `decode_brush`."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    sizes = (3, 4, 8, 16)
    parts = [f"{4 * flat.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for start, end in zip((0, *ends[:-1].tolist()), ends.tolist(), strict=True):
        value = 255 if flat[start] else 0
        for first in range(4 * start, 4 * end, 2**16):
            length = min(4 * end - first, 2**16)
            kind = next(kind for kind, size in enumerate(sizes) if length <= 2**size)
            parts.append(f"1{kind:02b}{length - 1:0{sizes[kind]}b}{value:08b}")
    bits = "".join(parts)
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))
