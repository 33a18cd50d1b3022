"""Describe the packages that test servers accept, and check finished packages."""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.tables import Ids, builtin_label_table
from udaseg.errors import DataError, UsageError
from udaseg.evaluation.prediction_files import CITYSCAPES_KEY, FRAME_KEY
from udaseg.text import format_size

_MAX_FAULTS = 3


@dataclass(frozen=True)
class Server:
    """Requirements of a test server.

    Attributes:
        pattern: Stems of its images; the server reads the group `key`.
        size: (height, width) of its images.
        images: Size of its test set.
        folders: Folders of the zip with one file per image; "" is the top level. A folder
            `confidence` has 16-bit images, 65535 for certain.
        url: URL to submit to.
    """

    name: str
    pattern: re.Pattern[str]
    size: tuple[int, int]
    images: int
    ids: Ids
    folders: tuple[str, ...]
    url: str


_CITYSCAPES_URL = "https://www.cityscapes-dataset.com/submit/"
_ACDC_URL = "https://acdc.vision.ee.ethz.ch/submit"
_DARK_ZURICH_URL = "https://codalab.lisn.upsaclay.fr/competitions/3783"
_DARK_ZURICH_FOLDERS = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
_ALL = (
    Server("cityscapes", CITYSCAPES_KEY, (1024, 2048), 1525, "label", ("",), _CITYSCAPES_URL),
    Server("acdc", FRAME_KEY, (1080, 1920), 2000, "train", ("labelTrainIds",), _ACDC_URL),
    Server(
        "dark-zurich", FRAME_KEY, (1080, 1920), 151, "train", _DARK_ZURICH_FOLDERS, _DARK_ZURICH_URL
    ),
)
SERVERS = {server.name: server for server in _ALL}
"""The servers of `--submit`. Names, sizes and folders are those of the Cityscapes evaluation script
and of published submissions to the other two, whose own pages were not available."""


def member_names(
    server: Server, dataset: PreparedDataset, samples: Sequence[Sample]
) -> dict[str, dict[str, str]]:
    """Return, for each image, the file in each folder of the zip.

    Images whose name or size the server does not expect are refused.
    """
    names: dict[str, dict[str, str]] = {}
    images: dict[str, str] = {}
    for sample in samples:
        stem = PurePosixPath(sample.image).stem
        match = server.pattern.fullmatch(stem)
        refused = f"--submit {server.name}: {sample.image}"
        if match is None:
            raise UsageError(
                f"{refused} of {dataset.name} is not named like an image of {server.name}"
            )
        if sample.stored_size != server.size:
            raise UsageError(
                f"{refused} of {dataset.name} is {format_size(sample.stored_size)}, "
                f"but the server's images are {format_size(server.size)}"
            )
        other = images.setdefault(match["key"], sample.image)
        if other != sample.image:
            raise UsageError(f"{refused} and {other} are the same image to the server")
        names[sample.image] = {
            folder: str(PurePosixPath(folder) / f"{stem}.png") for folder in server.folders
        }
    return names


def check_package(path: Path, server: Server, members: Mapping[str, str]) -> None:
    """Read a finished zip from disk and check everything that the server requires.

    `members` are the expected files with their folders; no other files are allowed.
    """
    faults: list[str] = []
    try:
        with zipfile.ZipFile(path) as package:
            counts = Counter(package.namelist())
            problems = {
                "missing": sorted(members.keys() - counts.keys()),
                "not expected": sorted(counts.keys() - members.keys()),
                "twice": [name for name, times in counts.items() if times > 1],
            }
            for problem, names in problems.items():
                if names:
                    faults.append(f"{len(names)} files {problem}: {', '.join(names[:_MAX_FAULTS])}")
            for name in sorted(members.keys() & counts.keys()):
                faults += _check_file(name, package.read(name), server, members[name])
    except (OSError, zipfile.BadZipFile) as error:
        faults.append(f"cannot be read: {error}")
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise DataError(
            f"{path}: is not a valid package for {server.name}:\n  "
            + "\n  ".join([*faults[:_MAX_FAULTS], *more])
        )


def _check_file(name: str, data: bytes, server: Server, folder: str) -> list[str]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return [f"{name}: is not an image"]
    depth = np.uint16 if folder == "confidence" else np.uint8
    if pixels.ndim != 2 or pixels.dtype != depth:
        return [f"{name}: is not one channel of {np.dtype(depth).itemsize * 8} bits"]
    if pixels.shape != server.size:
        return [f"{name}: is {format_size((pixels.shape[0], pixels.shape[1]))}"]
    if folder == "confidence":
        return []
    counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel()
    invalid = sorted(set(np.flatnonzero(counts).tolist()) - _allowed_ids(server, folder))
    if not invalid:
        return []
    return [f"{name}: contains {', '.join(map(str, invalid))}, which are not {server.ids} ids"]


def _allowed_ids(server: Server, folder: str) -> set[int]:
    table = builtin_label_table("cityscapes19")
    if server.ids == "label":
        return {class_ids[0] for class_ids in table.ids}
    void = {255} if folder == "labelTrainIds_invalid" else set()
    return {*range(len(table.classes)), *void}
