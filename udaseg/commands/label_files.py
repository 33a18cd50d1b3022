"""Predictions as PNG files: under which name, with which ids, and which file is of which image."""

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
    """Return the label id of Cityscapes of each class.

    Raises:
        UsageError: A class is none of the 19 of Cityscapes.
    """
    table = class_table("cityscapes19")
    known = {name: own[0] for name, own in zip(table.classes.names, table.ids, strict=True)}
    others = [name for name in classes.names if name not in known]
    if others:
        raise UsageError(
            f"label ids are those of Cityscapes, which has no class {printable(', '.join(others))}"
        )
    return tuple(known[name] for name in classes.names)


def stored_ids(classes: ClassSpace, ids: Ids) -> bytes:
    """Return 256 entries: what is stored for each train id of `classes`.

    A pixel without a class is 255 among train ids, and 0 (unlabeled) among label ids.

    Raises:
        UsageError: Label ids of classes that Cityscapes does not have.
    """
    if ids == "train":
        return lookup_table(range(len(classes)))
    return bytes(label_ids(classes)).ljust(256, b"\0")


def server_ids(classes: ClassSpace, ids: Ids) -> tuple[int, ...]:
    """Return the label id, or the train id, that Cityscapes gives each class, whatever its order.

    Raises:
        UsageError: A class is none of the 19 of Cityscapes.
    """
    labels = label_ids(classes)
    return labels if ids == "label" else classes.train_ids_in(class_table("cityscapes19").classes)


class Saver:
    """Writes predictions as one-channel PNGs below a folder, in the folders of the images.

    Args:
        folder: Where; it must not hold PNGs.
        dataset: Whose images.
        split: Which of them.
        classes: What the train ids mean.
        ids: Which ids the files hold.

    Raises:
        UsageError: The folder holds PNGs, or `classes` have no label ids.
    """

    def __init__(
        self, folder: Path, dataset: PreparedDataset, split: str, classes: ClassSpace, ids: Ids
    ) -> None:
        if folder.exists() and (not folder.is_dir() or find(folder, "**/*.png")):
            raise UsageError(f"{folder}: holds files already; --save takes a new or empty folder")
        self._folder = folder
        self._names = file_names(dataset.split(split))
        self._table = np.frombuffer(stored_ids(classes, ids), np.uint8)
        write_json_atomic(folder / FACTS, {"ids": ids, "classes": {"names": list(classes.names)}})

    def write(self, sample: Sample, labels: Pixels) -> None:
        """Write the labels (H, W) of one image."""
        stored = np.asarray(cv2.LUT(labels, self._table), np.uint8)
        write_png(self._folder / self._names[sample.image], stored)


def file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the path of the prediction of each image: its own, as PNG, each once."""
    shared = Counter(PurePosixPath(sample.image).with_suffix("") for sample in samples)
    return {
        sample.image: f"{sample.image}.png"
        if shared[PurePosixPath(sample.image).with_suffix("")] > 1
        else str(PurePosixPath(sample.image).with_suffix(".png"))
        for sample in samples
    }


def saved_classes(folder: Path) -> ClassSpace | None:
    """Return the classes that a `prediction.json` in or beside the folder names, else None.

    `udaseg predict` and `eval --save` leave one, so that train ids keep their meaning.

    Raises:
        DataError: It cannot be read, or tells of masks of networks with other classes.
    """
    path = next((at / FACTS for at in (folder, folder.parent) if (at / FACTS).is_file()), None)
    if path is None:
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        names = known["classes"]["names"]
        several = any(each["classes"]["names"] != names for each in known.get("also_there", []))
        if several:
            raise DataError(f"{path}: tells of masks of networks with other classes")
        return ClassSpace(tuple(map(str, names)), tuple((0, 0, 0) for _ in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not say which classes were predicted: {error}") from error


def match_files(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Return the prediction of each image, from anywhere below a folder.

    Files belong to an image by their name: the same stem, or for the names of Cityscapes, ACDC
    and Dark Zurich the same city or drive, sequence and frame, whatever follows. Where images in
    several folders share a name, the folders must agree as far as both have them.

    Raises:
        DataError: An image has no prediction, or several.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in find(folder, "**/*.png"):
        found[name_key(path.stem)].append(path)
    shared = Counter(name_key(PurePosixPath(sample.image).stem) for sample in samples)
    own = file_names(samples)
    chosen: list[Path] = []
    missing: list[str] = []
    double: list[str] = []
    for sample in samples:
        image = PurePosixPath(sample.image)
        key = name_key(image.stem)
        paths = found[key]
        if own[sample.image] == f"{sample.image}.png":  # a.jpg.png, of a.jpg beside a.png
            paths = found[image.name] or paths
        if shared[key] > 1 or len(paths) > 1:
            paths = [path for path in paths if _agree(path.relative_to(folder), image)]
        if len(paths) == 1:
            chosen.append(paths[0])
        else:
            (double if paths else missing).append(sample.image)
    for what, images, hint in (
        ("no prediction", missing, ""),
        ("several predictions", double, "; give the folder of one kind of mask"),
    ):
        if images:
            listed = ", ".join(images[:_SHOWN]) + (" ..." if len(images) > _SHOWN else "")
            raise DataError(
                f"{printable(str(folder))}: {what} for {len(images)} of {len(samples)} images: "
                f"{printable(listed)}{hint}"
            )
    return chosen


def name_key(stem: str) -> str:
    """Return the part of a name that all files of one image share."""
    for pattern in (CITYSCAPES_KEY, FRAME_KEY):
        match = pattern.fullmatch(stem)
        if match is not None:
            return match["key"]
    return stem


def read_prediction(path: Path) -> Pixels:
    """Return the ids of a prediction, (H, W) uint8; a palette gives its indices.

    Raises:
        DataError: Unreadable, damaged, of several channels, or of ids that a byte does not hold.
    """
    ids = read_label_ids(path, "ids")
    if ids.dtype != np.uint8:
        if ids.min() < 0 or ids.max() > IGNORE:
            raise DataError(f"{path}: holds ids above {IGNORE}")
        ids = ids.astype(np.uint8)
    return ids


def _agree(path: Path, image: PurePosixPath) -> bool:
    """Return whether two paths are the same as far as both go up, names aside."""
    theirs, ours = path.parts[-2::-1], image.parts[-2::-1]
    same = all(a == b for a, b in zip(theirs, ours, strict=False))
    names = (image.name, image.stem)
    return same and (path.stem in names or name_key(path.stem) == name_key(image.stem))
