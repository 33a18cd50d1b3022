"""Write, name and read predictions as PNG files, and match them with images."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data import (
    IGNORE,
    ClassSpace,
    PreparedDataset,
    Sample,
    class_table,
    find,
    lookup_table,
    read_label_ids,
    write_png,
)
from udaseg.errors import DataError, UsageError
from udaseg.recipe import printable
from udaseg.reporting import write_json_atomic

Pixels = NDArray[np.uint8]
Ids = Literal["train", "label"]

FACTS = "prediction.json"
CITYSCAPES_KEY = re.compile(r"(?P<key>[^_]+_[0-9]{6}_[0-9]{6})(?:_.*)?")
FRAME_KEY = re.compile(r"(?P<key>[^_]+_frame_[0-9]{6})(?:_.*)?")
_SHOWN = 3


def label_ids(classes: ClassSpace) -> tuple[int, ...]:
    """Return the Cityscapes label id of each class.

    Raises:
        UsageError: A class is not one of the 19 of Cityscapes.
    """
    table = class_table("cityscapes19")
    id_by_name = {
        name: ids_of_class[0]
        for name, ids_of_class in zip(table.classes.names, table.ids, strict=True)
    }
    unknown = [name for name in classes.names if name not in id_by_name]
    if unknown:
        raise UsageError(
            "label ids exist only for Cityscapes, which has no class "
            f"{printable(', '.join(unknown))}"
        )
    return tuple(id_by_name[name] for name in classes.names)


def stored_ids(classes: ClassSpace, ids: Ids) -> bytes:
    """Return 256 entries: the id that is written for each train id of `classes`.

    A pixel without a class is 255 among train ids, and 0 (unlabeled) among label ids.

    Raises:
        UsageError: Label ids are requested for classes that Cityscapes lacks.
    """
    if ids == "train":
        return lookup_table(range(len(classes)))
    return bytes(label_ids(classes)).ljust(256, b"\0")


def server_ids(classes: ClassSpace, ids: Ids) -> tuple[int, ...]:
    """Return each class's Cityscapes label id or train id, independent of the class order.

    Raises:
        UsageError: A class is not one of the 19 of Cityscapes.
    """
    labels = label_ids(classes)
    return labels if ids == "label" else classes.train_ids_in(class_table("cityscapes19").classes)


class Saver:
    """Writes predictions as single-channel PNGs, in the same folder structure as the images.

    Args:
        folder: Output folder; it must not contain PNGs.
        dataset: Data set of the images.
        split: Split of `dataset`.
        classes: Meaning of the train ids.
        ids: Kind of ids to write.

    Raises:
        UsageError: The folder contains PNGs, or `classes` have no label ids.
    """

    def __init__(
        self, folder: Path, dataset: PreparedDataset, split: str, classes: ClassSpace, ids: Ids
    ) -> None:
        if folder.exists() and (not folder.is_dir() or find(folder, "**/*.png")):
            raise UsageError(
                f"{folder}: already contains files; --save needs a new or empty folder"
            )
        self._folder = folder
        self._names = file_names(dataset.split(split))
        self._table = np.frombuffer(stored_ids(classes, ids), np.uint8)
        write_json_atomic(folder / FACTS, {"ids": ids, "classes": {"names": list(classes.names)}})

    def write(self, sample: Sample, labels: Pixels) -> None:
        """Write the labels (H, W) of one image."""
        stored = np.asarray(cv2.LUT(labels, self._table), np.uint8)
        write_png(self._folder / self._names[sample.image], stored)


def file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the relative PNG path of each image's prediction; no two are equal."""
    stem_counts = Counter(PurePosixPath(sample.image).with_suffix("") for sample in samples)
    return {
        sample.image: f"{sample.image}.png"
        if stem_counts[PurePosixPath(sample.image).with_suffix("")] > 1
        else str(PurePosixPath(sample.image).with_suffix(".png"))
        for sample in samples
    }


def saved_classes(folder: Path) -> ClassSpace | None:
    """Return the classes listed in a `prediction.json` in or next to the folder, else None.

    `udaseg predict` and `eval --save` write this file to record the meaning of train ids.

    Raises:
        DataError: The file cannot be read, or covers masks of networks with other classes.
    """
    path = next(
        (parent / FACTS for parent in (folder, folder.parent) if (parent / FACTS).is_file()), None
    )
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = document["classes"]["names"]
        differ = any(entry["classes"]["names"] != names for entry in document.get("also_there", []))
        if differ:
            raise DataError(f"{path}: lists masks of networks with different classes")
        return ClassSpace(tuple(map(str, names)), tuple((0, 0, 0) for _ in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not name the predicted classes: {error}") from error


def match_files(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Return the prediction of each image, from anywhere below a folder.

    Files match an image by name: the same stem, or for the naming schemes of Cityscapes, ACDC and
    Dark Zurich the same city or drive, sequence and frame, with any suffix. If images in several
    folders share a name, the folder names must agree as far as both paths have them.

    Raises:
        DataError: An image has no prediction, or several.
    """
    paths_by_key: dict[str, list[Path]] = defaultdict(list)
    for path in find(folder, "**/*.png"):
        paths_by_key[name_key(path.stem)].append(path)
    key_counts = Counter(name_key(PurePosixPath(sample.image).stem) for sample in samples)
    own_names = file_names(samples)
    chosen: list[Path] = []
    missing: list[str] = []
    ambiguous: list[str] = []
    for sample in samples:
        image = PurePosixPath(sample.image)
        key = name_key(image.stem)
        paths = paths_by_key[key]
        if own_names[sample.image] == f"{sample.image}.png":  # a.jpg.png, if a.jpg is next to a.png
            paths = paths_by_key[image.name] or paths
        if key_counts[key] > 1 or len(paths) > 1:
            paths = [path for path in paths if _agree(path.relative_to(folder), image)]
        if len(paths) == 1:
            chosen.append(paths[0])
        else:
            (ambiguous if paths else missing).append(sample.image)
    for problem, images, hint in (
        ("no prediction", missing, ""),
        ("several predictions", ambiguous, "; give the folder of one kind of mask"),
    ):
        if images:
            listed = ", ".join(images[:_SHOWN]) + (" ..." if len(images) > _SHOWN else "")
            raise DataError(
                f"{printable(str(folder))}: {problem} for {len(images)} of {len(samples)} images: "
                f"{printable(listed)}{hint}"
            )
    return chosen


def name_key(stem: str) -> str:
    """Return the part of a file name that all files of one image share."""
    for pattern in (CITYSCAPES_KEY, FRAME_KEY):
        match = pattern.fullmatch(stem)
        if match is not None:
            return match["key"]
    return stem


def read_prediction(path: Path) -> Pixels:
    """Return the ids of a prediction, (H, W) uint8; for a palette PNG, its indices.

    Raises:
        DataError: The file is unreadable or damaged, has several channels, or ids above 255.
    """
    ids = read_label_ids(path, "ids")
    if ids.dtype != np.uint8:
        if ids.min() < 0 or ids.max() > IGNORE:
            raise DataError(f"{path}: holds ids above {IGNORE}")
        ids = ids.astype(np.uint8)
    return ids


def _agree(path: Path, image: PurePosixPath) -> bool:
    """Return whether two paths have the same name and the same folders as far as both go."""
    path_folders, image_folders = path.parts[-2::-1], image.parts[-2::-1]
    same = all(a == b for a, b in zip(path_folders, image_folders, strict=False))
    names = (image.name, image.stem)
    return same and (path.stem in names or name_key(path.stem) == name_key(image.stem))
