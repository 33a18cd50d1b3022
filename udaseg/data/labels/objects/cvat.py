"""Label format `cvat`: the shapes of all images in one XML file ("CVAT for images 1.1")."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from udaseg.data.files.orientation import Size
from udaseg.data.labels.objects.drawing import (
    Area,
    LabelledImage,
    Mask,
    draw_areas,
    ellipse_mask,
    explained,
    place,
    polygon_mask,
    runs_mask,
    turned_mask,
)
from udaseg.errors import DataError

_SHAPES = ("polygon", "mask", "box", "ellipse")


def read(path: Path, data: bytes) -> list[LabelledImage]:
    """Return the images of a CVAT file: polygons, masks, boxes and ellipses.

    They are drawn by their z-order, and those of one z-order in the order of the file. Polygons and
    boxes are filled as pycocotools does, which CVAT uses for its own masks. Lines, points and tags
    have no pixels.

    Raises:
        DataError: The file is not in the format of CVAT for images.
    """
    images = []
    try:
        for _, element in ET.iterparse(io.BytesIO(data)):
            if element.tag == "track":
                raise DataError(
                    f"{path}: is CVAT for video; export the task as CVAT for images 1.1"
                )
            if element.tag == "image":
                images.append(_image(path, element))
                element.clear()
    except ET.ParseError as error:
        raise DataError(f"{path}: is not XML: {error}") from error
    if not images:
        raise DataError(f"{path}: has no image; export the task as CVAT for images 1.1")
    return images


def _image(path: Path, element: ET.Element) -> LabelledImage:
    with explained(path, f"image {element.get('name')}"):
        size = (int(element.attrib["height"]), int(element.attrib["width"]))
        shapes = [shape for shape in element if shape.tag in _SHAPES]
        shapes.sort(key=lambda shape: int(shape.get("z_order", "0")))
        areas = [
            Area(shape.attrib["label"], partial(_draw, path, shape.tag, dict(shape.attrib)))
            for shape in shapes
        ]
        return LabelledImage((element.attrib["name"],), size, partial(draw_areas, areas))


def _draw(path: Path, kind: str, shape: Mapping[str, str], size: Size) -> Mask:
    with explained(path, f"a {kind} of {shape['label']}"):
        if kind == "polygon":
            points = shape["points"].replace(";", ",").split(",")
            return polygon_mask([list(map(float, points))], size)
        if kind == "mask":
            height, width = int(shape["height"]), int(shape["width"])
            runs = [int(count) for count in shape["rle"].split(",")]
            part = runs_mask(runs, (height, width))
            return place(part, int(shape["top"]), int(shape["left"]), size)
        if kind == "box":
            return _box_mask(shape, size)
        center = (float(shape["cx"]), float(shape["cy"]))
        radii = (float(shape["rx"]), float(shape["ry"]))
        return ellipse_mask(center, radii, float(shape.get("rotation", "0")), size)


def _box_mask(shape: Mapping[str, str], size: Size) -> Mask:
    """Return the pixels of a box, which is turned about its center."""
    left, top, right, bottom = (float(shape[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    x, y = (left + right) / 2, (top + bottom) / 2
    w, h = right - x, bottom - y
    corners = [(-w, -h), (w, -h), (w, h), (-w, h)]
    return turned_mask(corners, (x, y), float(shape.get("rotation", "0")), size)
