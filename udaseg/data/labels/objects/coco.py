"""Label format `coco`: the instances of all images in one JSON file."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from udaseg.data.files.orientation import Size
from udaseg.data.labels.objects.drawing import (
    Area,
    LabelledImage,
    Mask,
    NamedLabels,
    draw_areas,
    explained,
    polygon_mask,
    read_document,
)
from udaseg.errors import DataError


def read(path: Path, data: bytes) -> list[LabelledImage]:
    """Return the images of a COCO file; polygons, RLE and crowds are filled as pycocotools does.

    Annotations are drawn in the order of the file.

    Raises:
        DataError: The file is not in the format of COCO, or its annotations are only boxes.
    """
    document = read_document(path, data)
    with explained(path, "is not a COCO file"):
        names = {each["id"]: str(each["name"]) for each in document["categories"]}
        annotations: dict[Any, list[Any]] = {each["id"]: [] for each in document["images"]}
        boxes = 0
        for annotation in document["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
            boxes += "segmentation" not in annotation and "bbox" in annotation
            _ = names[annotation["category_id"]]
    if boxes:
        raise DataError(f"{path}: {boxes} annotations are only boxes, without a segmentation")
    with explained(path, "images"):
        return [
            LabelledImage(
                (str(each["file_name"]),),
                _size(each),
                partial(_draw, path, annotations[each["id"]], names),
            )
            for each in document["images"]
        ]


def _size(image: Mapping[str, Any]) -> Size | None:
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else None


def _draw(
    path: Path, annotations: Sequence[Mapping[str, Any]], names: Mapping[Any, str], size: Size
) -> NamedLabels:
    areas = (Area(names[each["category_id"]], partial(_mask, path, each)) for each in annotations)
    return draw_areas(areas, size)


def _mask(path: Path, annotation: Mapping[str, Any], size: Size) -> Mask:
    segmentation = annotation["segmentation"]
    with explained(path, f"annotation {annotation.get('id')}"):
        if isinstance(segmentation, list):
            return polygon_mask(segmentation, size)
        return _rle_mask(segmentation, size)


def _rle_mask(segmentation: Mapping[str, Any], size: Size) -> Mask:
    from faster_coco_eval.core import mask as coco

    if tuple(segmentation["size"]) != size:
        raise ValueError(f"its size is {segmentation['size']}, that of the image {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"its runs have {sum(counts)} pixels, the image {size[0] * size[1]}")
        return np.asarray(coco.decode(coco.frPyObjects(dict(segmentation), *size)), np.bool_)
    text = {"size": list(size), "counts": str(counts).encode()}
    return np.asarray(coco.decode(text), np.bool_)
