"""Label format `labelme`: the shapes of an image in a JSON file of their own."""

import base64
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from udaseg.data.files.orientation import Size
from udaseg.data.labels.objects.drawing import (
    Area,
    LabelledImage,
    Mask,
    draw_areas,
    explained,
    place,
    read_document,
)

_LINE_WIDTH, _POINT_RADIUS = 10, 5


def read(path: Path, data: bytes) -> list[LabelledImage]:
    """Return the image of a labelme file; its shapes are drawn as labelme draws them.

    Shapes are drawn in the order of the file, lines 10 pixels wide, points with a radius of 5.

    Raises:
        DataError: The file is not in the format of labelme.
    """
    document = read_document(path, data)
    with explained(path, "is not a labelme file"):
        areas = [
            Area(str(shape["label"]), partial(_draw, path, number, shape))
            for number, shape in enumerate(document["shapes"], 1)
        ]
        height, width = document.get("imageHeight"), document.get("imageWidth")
        size = (int(height), int(width)) if height and width else None
        name = str(document.get("imagePath") or path.stem)
    return [LabelledImage((name,), size, partial(draw_areas, areas))]


def _draw(path: Path, number: int, shape: Mapping[str, Any], size: Size) -> Mask:
    with explained(path, f"shape {number}"):
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if shape.get("shape_type") != "mask":
            return _shape_mask(shape.get("shape_type") or "polygon", points, size)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            part = np.asarray(image).astype(np.bool_)
        (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points)
        if part.shape != (bottom - top + 1, right - left + 1):
            raise ValueError(f"its mask has {part.shape[1]}x{part.shape[0]} pixels, not its box")
        return place(part, top, left, size)


def _shape_mask(kind: str, points: list[tuple[float, float]], size: Size) -> Mask:
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    match kind, points:
        case "polygon", [_, _, _, *_]:
            draw.polygon(points, fill=1, outline=1)
        case "oriented_rectangle", [_, _, _, _]:
            draw.polygon(points, fill=1, outline=1)
        case "rectangle", [(x, y), (u, v)]:
            draw.rectangle((min(x, u), min(y, v), max(x, u), max(y, v)), fill=1, outline=1)
        case "circle", [(x, y), (u, v)]:
            radius = math.hypot(x - u, y - v)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
        case "line", [_, _]:
            draw.line(points, fill=1, width=_LINE_WIDTH)
        case "linestrip", [_, _, *_]:
            draw.line(points, fill=1, width=_LINE_WIDTH)
        case "point", [(x, y)]:
            box = (x - _POINT_RADIUS, y - _POINT_RADIUS, x + _POINT_RADIUS, y + _POINT_RADIUS)
            draw.ellipse(box, fill=1, outline=1)
        case _:
            raise ValueError(f"a {kind} of {len(points)} points cannot be drawn")
    return np.asarray(canvas).astype(np.bool_)
