"""Scores of prediction PNGs: which file belongs to which image, and with which ids."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict

import cv2
import numpy as np

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.find import find_files
from udaseg.data.files.forms import parse_form
from udaseg.data.files.headers import png_pixel_format
from udaseg.data.files.images import Pixels, read_bytes, write_png
from udaseg.data.files.orientation import to_stored, to_upright, turned_size
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.read import read_label_ids
from udaseg.data.labels.tables import Ids, stored_id_table
from udaseg.distributed import on_rank_zero
from udaseg.errors import DataError, UsageError
from udaseg.files import write_json
from udaseg.inference.pipeline import SamplePrediction
from udaseg.text import format_size

PREDICTION_FILE = "prediction.json"
CITYSCAPES_KEY = re.compile(r"(?P<key>[^_]+_[0-9]{6}_[0-9]{6})(?:_.*)?")
FRAME_KEY = re.compile(r"(?P<key>[^_]+_frame_[0-9]{6})(?:_.*)?")
_MAX_LISTED = 3


def prediction_writer(
    folder: Path, dataset: PreparedDataset, split: str, classes: ClassSpace, ids: Ids
) -> Callable[[SamplePrediction], None]:
    """Return a function that writes a prediction as a PNG below a folder, nested like the images.

    The PNGs have the orientation of the stored images. The folder must not contain PNGs.
    """
    names = prediction_names(dataset.split(split))
    table = np.frombuffer(stored_id_table(classes, ids), np.uint8)

    def start() -> None:
        if folder.exists() and (not folder.is_dir() or find_files(folder, "**/*.png")):
            raise UsageError(
                f"{folder}: already contains files; --save needs a new or empty folder"
            )
        facts = {"ids": ids, "classes": {"names": list(classes.names)}}
        write_json(folder / PREDICTION_FILE, facts)

    on_rank_zero(start)

    def write(prediction: SamplePrediction) -> None:
        ids = np.asarray(cv2.LUT(prediction.labels, table), np.uint8)
        sample = prediction.sample
        write_png(folder / names[sample.image], to_stored(ids, sample.orientation))

    return write


def prediction_names(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the relative PNG path of each image's prediction; no two are equal."""
    paths = {sample.image: PurePosixPath(sample.image).with_suffix(".png") for sample in samples}
    counts = Counter(paths.values())
    return {
        image: str(path) if counts[path] == 1 else f"{image}.png" for image, path in paths.items()
    }


class _ClassNames(TypedDict):
    names: list[str]


class _Network(TypedDict):
    classes: _ClassNames


class _PredictionFacts(_Network):
    """What of the form of `prediction.json` is needed."""

    also_there: NotRequired[list[_Network]]
    ids: NotRequired[str | dict[str, str]]


def recorded_classes(folder: Path) -> ClassSpace | None:
    """Return the classes listed in a `prediction.json` in or next to the folder, else None.

    `udaseg predict` and `eval --save` write this file to record the meaning of train ids. After
    several `predict`s, it lists several networks.
    """
    path, document = _recorded(folder)
    if document is None:
        return None
    names = document["classes"]["names"]
    if any(entry["classes"]["names"] != names for entry in document.get("also_there", [])):
        raise DataError(f"{path}: lists masks of networks with different classes")
    return ClassSpace(tuple(names), tuple((0, 0, 0) for _ in names))


def refuse_other_ids(folder: Path, ids: Ids) -> None:
    """Refuse a folder whose `prediction.json` says that it holds the other kind of ids."""
    path, document = _recorded(folder)
    recorded = ids if document is None else document.get("ids", ids)
    if isinstance(recorded, dict):  # of `predict`, by the folders next to the file
        kinds = set(recorded.values())
        is_only = path.parent == folder and len(kinds) == 1
        recorded = kinds.pop() if is_only else recorded.get(folder.name, ids)
    if recorded != ids:
        raise DataError(
            f"{path}: says that the PNGs hold {recorded} ids, so they are not read as {ids} ids"
        )


def _recorded(folder: Path) -> tuple[Path, _PredictionFacts | None]:
    """Return the `prediction.json` in or next to a folder, and what it says; None without one."""
    paths = [parent / PREDICTION_FILE for parent in (folder, folder.parent)]
    path = next((path for path in paths if path.is_file()), paths[0])
    if not path.is_file():
        return path, None
    try:
        return path, parse_form(path.read_text(encoding="utf-8"), _PredictionFacts)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: does not name the predicted classes: {error}") from error


def match_predictions(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Return the prediction of each image as `find_predictions`, which must all be there."""
    found = _candidates(folder, samples)
    missing = [image for image, paths in found.items() if not paths]
    _refuse(folder, "no prediction", missing, len(samples))
    _refuse_several(folder, found)
    return [found[sample.image][0] for sample in samples]


def find_predictions(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """Return the prediction of each image that has one, from anywhere below a folder, by image.

    Files match an image by name: the same stem, or for the naming schemes of Cityscapes, ACDC and
    Dark Zurich the same city or drive, sequence and frame, with any suffix. If images in several
    folders share a name, the folder names must agree as far as both paths have them.
    """
    found = _candidates(folder, samples)
    _refuse_several(folder, found)
    return {image: paths[0] for image, paths in found.items() if paths}


def _candidates(folder: Path, samples: Sequence[Sample]) -> dict[str, list[Path]]:
    """Return all files that may be the prediction of each image."""
    paths_by_key: dict[str, list[Path]] = defaultdict(list)
    for path in find_files(folder, "**/*.png"):
        paths_by_key[name_key(path.stem)].append(path)
    key_counts = Counter(name_key(PurePosixPath(sample.image).stem) for sample in samples)
    own_names = prediction_names(samples)
    found: dict[str, list[Path]] = {}
    for sample in samples:
        image = PurePosixPath(sample.image)
        key = name_key(image.stem)
        paths = paths_by_key[key]
        if own_names[sample.image] == f"{sample.image}.png":  # a.jpg.png, if a.jpg is next to a.png
            paths = paths_by_key[image.name] or paths
        if key_counts[key] > 1 or len(paths) > 1:
            paths = [path for path in paths if _paths_agree(path.relative_to(folder), image)]
        found[sample.image] = paths
    return found


def _refuse_several(folder: Path, found: dict[str, list[Path]]) -> None:
    several = [image for image, paths in found.items() if len(paths) > 1]
    hint = "; give the folder of one kind of mask"
    _refuse(folder, "several predictions", several, len(found), hint)


def _refuse(folder: Path, problem: str, images: list[str], total: int, hint: str = "") -> None:
    if images:
        listed = ", ".join(images[:_MAX_LISTED]) + (" ..." if len(images) > _MAX_LISTED else "")
        raise DataError(f"{folder}: {problem} for {len(images)} of {total} images: {listed}{hint}")


def name_key(stem: str) -> str:
    """Return the part of a file name that all files of one image share."""
    match = CITYSCAPES_KEY.fullmatch(stem) or FRAME_KEY.fullmatch(stem)
    return stem if match is None else match["key"]


def read_prediction(path: Path) -> Pixels:
    """Return the ids of a prediction as stored, (H, W) uint8; for a palette PNG, its indices."""
    ids = read_label_ids(path, "ids")
    if ids.max() > IGNORE or ids.min() < 0:
        raise DataError(f"{path}: holds ids above {IGNORE}")
    return ids.astype(np.uint8, copy=False)


def read_upright_prediction(
    path: Path, sample: Sample, size: tuple[int, int], owner: str = "the truth"
) -> Pixels:
    """Return the ids of a prediction, (H, W) uint8, turned upright with its image.

    Args:
        path: The PNG, in the orientation of the stored image.
        sample: The image.
        size: (height, width) that the upright prediction must have.
        owner: What has this size, for messages.
    """
    ids, turned = read_prediction(path), sample.orientation != 1
    if turned and png_pixel_format(read_bytes(path)).endswith("palette"):
        raise DataError(
            f"{path}: is in colours, so it is upright, but {sample.image} is stored turned "
            f"(EXIF orientation {sample.orientation}); score masks of ids, which have the "
            "orientation of the file"
        )
    stored = turned_size(size, sample.orientation)
    if ids.shape != stored:
        where = f"{sample.image} as stored" if turned else owner
        raise DataError(
            f"{path}: has size {format_size(ids.shape)}, but {where} has {format_size(stored)}"
        )
    return to_upright(ids, sample.orientation)


def _paths_agree(path: Path, image: PurePosixPath) -> bool:
    """Return whether two paths have the same name and the same folders as far as both go."""
    path_folders, image_folders = path.parts[-2::-1], image.parts[-2::-1]
    same = all(a == b for a, b in zip(path_folders, image_folders, strict=False))
    names = (image.name, image.stem)
    return same and (path.stem in names or name_key(path.stem) == name_key(image.stem))
