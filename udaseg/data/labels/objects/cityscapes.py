"""Label format `cityscapes_polygons`: the polygons of an image in a JSON file of their own."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from udaseg.data.files.orientation import Size
from udaseg.data.labels.objects.drawing import (
    BACKGROUND,
    LabelledImage,
    NamedLabels,
    explained,
    read_document,
)
from udaseg.data.labels.tables import builtin_label_table

_GROUP, _NOT_DRAWN = "group", "license plate"

UNSCORED = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic"),
    *("ground", "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup"),
    *("caravan", "trailer"),
)
"""The labels of Cityscapes that no benchmark scores."""


def read(path: Path, data: bytes) -> list[LabelledImage]:
    """Return the image of a polygon file, drawn as cityscapesScripts draws it (json2labelImg).

    Polygons are drawn in the order of the file. License plates and deleted objects are not drawn,
    and a group, such as `cargroup`, has the label of its members.

    Raises:
        DataError: The file is not in the format of Cityscapes.
    """
    document = read_document(path, data)
    known = {*builtin_label_table("cityscapes19").classes.names, *UNSCORED}
    with explained(path, "is not a file of Cityscapes polygons"):
        size = (int(document["imgHeight"]), int(document["imgWidth"]))
        objects = [
            (_label(str(each["label"]), known), [(float(x), float(y)) for x, y in each["polygon"]])
            for each in document["objects"]
            if not each.get("deleted")
        ]
    return [LabelledImage((path.stem,), size, partial(_draw, path, objects))]


def _label(name: str, known: Collection[str]) -> str:
    return name.removesuffix(_GROUP) if name not in known and name != _GROUP else name


def _draw(path: Path, objects: list[tuple[str, list[Any]]], size: Size) -> NamedLabels:
    positions = {BACKGROUND: 0}
    canvas = Image.new("I", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for number, (label, polygon) in enumerate(objects, 1):
        if label != _NOT_DRAWN:
            with explained(path, f"object {number}"):
                draw.polygon(polygon, fill=positions.setdefault(label, len(positions)))
    return NamedLabels(np.asarray(canvas).astype(np.uint16), tuple(positions))
