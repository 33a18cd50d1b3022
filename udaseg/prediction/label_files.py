"""Write masks as files of annotation tools, in which people correct them.

Classes are whole masks, so holes and separate parts are kept. The pixels of a class `background`,
and those on which the network abstains, have no object.
"""

import base64
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, assert_never
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from udaseg.data.files.images import Pixels, image_orientation, read_image
from udaseg.data.files.orientation import to_upright
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.objects.drawing import BACKGROUND, Mask
from udaseg.data.labels.objects.label_studio import encode_brush
from udaseg.data.labels.tables import default_color
from udaseg.files import open_atomic, write_text
from udaseg.inference.options import MAX_PIXELS
from udaseg.prediction.geotiffs import write_geotiffs
from udaseg.prediction.options import LabelFile
from udaseg.prediction.plan import Job

_BLACK = (0, 0, 0)


class _LabelledImage(NamedTuple):
    """An image with its labels, both upright."""

    path: Path
    name: str  # relative to the folder that all inputs share
    stem: str  # that of its masks below their folder
    labels: Pixels


def label_file_path(kind: LabelFile, out: Path) -> Path:
    """Return the file of a kind below `out`; for labelme and geotiff, the folder of its files."""
    match kind:
        case "coco" | "label-studio":
            return out / f"{kind}.json"
        case "cvat":
            return out / "cvat.zip"
        case "labelme" | "geotiff":
            return out / kind
        case _:
            assert_never(kind)


def write_label_files(
    kinds: Sequence[LabelFile], jobs: Sequence[Job], base: Path, out: Path, classes: ClassSpace
) -> None:
    """Write the masks of images as files of annotation tools.

    Labels are upright, as the tools show the images.

    Args:
        kinds: Kinds of file.
        jobs: Jobs of images; those without a mask of ids are left out.
        base: Folder that the names of images in the files are relative to.
        out: Folder of the masks.
        classes: Classes of the ids.
    """
    for kind in kinds:
        images, path = _labelled(jobs, base, out / "ids"), label_file_path(kind, out)
        match kind:
            case "coco":
                with open_atomic(path) as file:
                    _write_coco(images, classes, file)
            case "label-studio":
                with open_atomic(path) as file:
                    _write_label_studio(images, classes, file)
                write_text(path.with_suffix(".xml"), _labeling_interface(classes))
            case "cvat":
                with open_atomic(path) as file:
                    _write_cvat(images, classes, file)
            case "labelme":
                for image in images:
                    _write_labelme(image, classes, path / f"{image.stem}.json")
            case "geotiff":
                write_geotiffs(jobs, path, out / "ids", classes)
            case _:
                assert_never(kind)


def _labelled(jobs: Iterable[Job], base: Path, ids: Path) -> Iterator[_LabelledImage]:
    for job in jobs:
        if not job.masks["ids"].is_file():
            continue  # the image failed
        stem = job.masks["ids"].relative_to(ids).with_suffix("").as_posix()
        labels = read_image(job.masks["ids"], max_pixels=MAX_PIXELS)[..., 0]
        upright = to_upright(labels, image_orientation(job.image))
        name = job.image.relative_to(base).as_posix()
        yield _LabelledImage(job.image, name, stem, np.ascontiguousarray(upright))


def _masks(labels: Pixels, classes: ClassSpace) -> Iterator[tuple[int, str, Mask]]:
    """Yield the train id, name and mask of each class in a label image, without background."""
    for train_id in np.unique(labels).tolist():
        if train_id < len(classes) and classes.names[train_id] != BACKGROUND:
            yield train_id, classes.names[train_id], labels == train_id


def _write_items(items: Iterable[Any], file: BinaryIO) -> None:
    """Write a JSON list, one item at a time."""
    start = b"["
    for item in items:
        file.write(start + json.dumps(item, allow_nan=False).encode())
        start = b",\n"
    file.write(b"[]" if start == b"[" else b"]")


def _write_coco(images: Iterable[_LabelledImage], classes: ClassSpace, file: BinaryIO) -> None:
    from faster_coco_eval.core import mask as coco

    listed: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image in images:
            height, width = image.labels.shape
            names = {"id": len(listed) + 1, "file_name": image.name}
            listed.append({**names, "height": height, "width": width})
            for train_id, _, mask in _masks(image.labels, classes):
                number += 1
                rle = coco.encode(np.asfortranarray(mask, np.uint8))
                yield {
                    "id": number,
                    "image_id": len(listed),
                    "category_id": train_id + 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [float(part) for part in coco.toBbox(rle)],
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                }

    file.write(b'{"annotations": ')
    _write_items(annotations(), file)
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(classes.names)]
    rest = {"images": listed, "categories": [c for c in categories if c["name"] != BACKGROUND]}
    file.write(b", " + json.dumps(rest, allow_nan=False).encode()[1:])


def _write_label_studio(
    images: Iterable[_LabelledImage], classes: ClassSpace, file: BinaryIO
) -> None:
    def task(image: _LabelledImage) -> dict[str, Any]:
        height, width = image.labels.shape
        results = [
            {
                "id": f"class{train_id}",
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [name]},
            }
            for train_id, name, mask in _masks(image.labels, classes)
        ]
        url = f"/data/local-files/?d={quote(image.name)}"
        prediction = {"model_version": "udaseg", "result": results}
        return {"data": {"image": url}, "predictions": [prediction]}

    _write_items(map(task, images), file)


def _labeling_interface(classes: ClassSpace) -> str:
    """Return the configuration of a Label Studio project that the predictions fit."""
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>\n'
        for name, color in zip(classes.names, classes.colors, strict=True)
        if name != BACKGROUND
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )


def _write_cvat(images: Iterable[_LabelledImage], classes: ClassSpace, file: BinaryIO) -> None:
    """Write the zip of CVAT's "Segmentation mask 1.1"."""
    colors = _distinct_colors(classes)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    names = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in images:
            names.append(image.stem)
            picture = Image.fromarray(image.labels)
            picture.putpalette(palette.tobytes())
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            archive.writestr(f"SegmentationClass/{image.stem}.png", buffer.getvalue())
        lines = ["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::"]
        for name, color in zip(classes.names, colors, strict=True):
            if name != BACKGROUND:
                lines.append(f"{name}:{','.join(map(str, color))}::")
        archive.writestr("labelmap.txt", "\n".join([*lines, ""]))
        archive.writestr("ImageSets/Segmentation/default.txt", "\n".join([*names, ""]))


def _distinct_colors(classes: ClassSpace) -> list[tuple[int, int, int]]:
    """Return a colour for each class; black is that of the background, and none occurs twice."""
    used, colors = {_BLACK}, []
    spare = (default_color(index) for index in range(1, 2**16))
    for name, color in zip(classes.names, classes.colors, strict=True):
        if name == BACKGROUND:
            colors.append(_BLACK)
            continue
        taken = used | set(classes.colors)
        chosen = color if color not in used else next(c for c in spare if c not in taken)
        used.add(chosen)
        colors.append(chosen)
    return colors


def _write_labelme(image: _LabelledImage, classes: ClassSpace, path: Path) -> None:
    shapes: list[dict[str, Any]] = []
    for _, name, mask in _masks(image.labels, classes):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
        buffer = io.BytesIO()
        Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(buffer, "PNG")
        shapes.append(
            {
                "label": name,
                "points": [[left, top], [right, bottom]],
                "group_id": None,
                "shape_type": "mask",
                "flags": {},
                "description": "",
                "mask": base64.b64encode(buffer.getvalue()).decode(),
            }
        )
    height, width = image.labels.shape
    document = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.path.relpath(image.path, path.parent),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_text(path, json.dumps(document, allow_nan=False))
