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
        name: Name on the command line.
        pattern: Stems of its images; the server reads the group `key`.
        size: (height, width) of its images.
        images: Size of its test set.
        ids: Ids that it expects.
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


SERVERS = {
    server.name: server
    for server in (
        Server(
            name="cityscapes",
            pattern=CITYSCAPES_KEY,
            size=(1024, 2048),
            images=1525,
            ids="label",
            folders=("",),
            url="https://www.cityscapes-dataset.com/submit/",
        ),
        Server(
            name="acdc",
            pattern=FRAME_KEY,
            size=(1080, 1920),
            images=2000,
            ids="train",
            folders=("labelTrainIds",),
            url="https://acdc.vision.ee.ethz.ch/submit",
        ),
        Server(
            name="dark-zurich",
            pattern=FRAME_KEY,
            size=(1080, 1920),
            images=151,
            ids="train",
            folders=("labelTrainIds", "labelTrainIds_invalid", "confidence"),
            url="https://codalab.lisn.upsaclay.fr/competitions/3783",
        ),
    )
}
"""The servers of `--submit`. Names, sizes and folders are those of the Cityscapes evaluation script
and of published submissions to the other two, whose own pages were not available."""


def member_names(
    server: Server, dataset: PreparedDataset, samples: Sequence[Sample]
) -> dict[str, dict[str, str]]:
    """Return, for each image, the file in each folder of the zip.

    Raises:
        UsageError: Names or sizes of the images do not match the server.
    """
    names: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}
    for sample in samples:
        stem = PurePosixPath(sample.image).stem
        match = server.pattern.fullmatch(stem)
        if match is None:
            raise UsageError(
                f"--submit {server.name}: {sample.image} of {dataset.name} is not named "
                f"like an image of {server.name}"
            )
        if (sample.height, sample.width) != server.size:
            actual, required = format_size((sample.height, sample.width)), format_size(server.size)
            raise UsageError(
                f"--submit {server.name}: {sample.image} of {dataset.name} is {actual}, "
                f"but the server's images are {required}"
            )
        other = keys.setdefault(match["key"], sample.image)
        if other != sample.image:
            raise UsageError(
                f"--submit {server.name}: {sample.image} and {other} are "
                "the same image to the server"
            )
        names[sample.image] = {
            folder: str(PurePosixPath(folder) / f"{stem}.png") for folder in server.folders
        }
    return names


def check_package(path: Path, server: Server, members: Mapping[str, str]) -> None:
    """Read a finished zip from disk and check everything that the server requires.

    Args:
        path: The zip.
        server: Server to submit to.
        members: Expected files with their folders; no other files are allowed.

    Raises:
        DataError: Lists the problems, one per line.
    """
    faults: list[str] = []
    try:
        with zipfile.ZipFile(path) as package:
            listed = package.namelist()
            faults += _check_names(listed, members)
            for name in sorted(set(listed) & set(members)):
                faults += _check_file(name, package.read(name), server, members[name])
    except (OSError, zipfile.BadZipFile) as error:
        faults.append(f"cannot be read: {error}")
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise DataError(
            f"{path}: is not a valid package for {server.name}:\n  "
            + "\n  ".join([*faults[:_MAX_FAULTS], *more])
        )


def allowed_values(server: Server, folder: str) -> frozenset[int]:
    """Return the pixel values allowed in files of a folder; all 16-bit values in `confidence`."""
    if folder == "confidence":
        return frozenset(range(2**16))
    table = builtin_label_table("cityscapes19")
    if server.ids == "label":
        return frozenset(class_ids[0] for class_ids in table.ids)
    void = {255} if folder == "labelTrainIds_invalid" else set()
    return frozenset(range(len(table.classes))) | void


def _check_names(listed: Sequence[str], members: Mapping[str, str]) -> list[str]:
    present = set(listed)
    duplicates = [name for name, times in Counter(listed).items() if times > 1]
    problems = (
        ("missing", sorted(set(members) - present)),
        ("not expected", sorted(present - set(members))),
        ("twice", duplicates),
    )
    return [
        f"{len(names)} files {problem}: {', '.join(names[:_MAX_FAULTS])}"
        for problem, names in problems
        if names
    ]


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
    invalid = sorted(set(np.flatnonzero(counts).tolist()) - allowed_values(server, folder))
    return (
        [f"{name}: contains {', '.join(map(str, invalid))}, which are not {server.ids} ids"]
        if invalid
        else []
    )
