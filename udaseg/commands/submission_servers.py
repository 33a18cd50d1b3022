"""What test servers take: names, sizes, ids, folders; and the check of a finished package."""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from udaseg.commands.label_files import CITYSCAPES_KEY, FRAME_KEY, Ids
from udaseg.commands.summary import shown_size
from udaseg.data import PreparedDataset, Sample, class_table
from udaseg.errors import DataError, UsageError
from udaseg.recipe import printable

_SHOWN = 3


@dataclass(frozen=True)
class Server:
    """What a test server takes.

    Attributes:
        name: How the user calls it.
        pattern: Stems of its images; `key` is the part that the server looks for.
        size: (height, width) of its images.
        images: How many its test set has.
        ids: Which ids it wants.
        folders: What the zip holds for each image, by folder; "" is none. A folder `confidence`
            holds 16 bits, 65535 for certain.
        home: Where to submit.
    """

    name: str
    pattern: re.Pattern[str]
    size: tuple[int, int]
    images: int
    ids: Ids
    folders: tuple[str, ...]
    home: str


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
            home="https://www.cityscapes-dataset.com/submit/",
        ),
        Server(
            name="acdc",
            pattern=FRAME_KEY,
            size=(1080, 1920),
            images=2000,
            ids="train",
            folders=("labelTrainIds",),
            home="https://acdc.vision.ee.ethz.ch/submit",
        ),
        Server(
            name="dark-zurich",
            pattern=FRAME_KEY,
            size=(1080, 1920),
            images=151,
            ids="train",
            folders=("labelTrainIds", "labelTrainIds_invalid", "confidence"),
            home="https://codalab.lisn.upsaclay.fr/competitions/3783",
        ),
    )
}
"""The servers of `--submit`. Names, sizes and folders are what the evaluation script of Cityscapes
and published submissions to the other two use; their own pages were not at hand."""


def member_names(
    server: Server, dataset: PreparedDataset, samples: Sequence[Sample]
) -> dict[str, dict[str, str]]:
    """Return for each image the file of each folder in the zip, named as the image is.

    Raises:
        UsageError: The images are not of the server's layout: names or sizes.
    """
    names: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}
    for sample in samples:
        stem = PurePosixPath(sample.image).stem
        match = server.pattern.fullmatch(stem)
        if match is None:
            raise UsageError(
                f"--submit {server.name}: {printable(sample.image)} of {dataset.name} is not named "
                f"as an image of {server.name} is"
            )
        if (sample.height, sample.width) != server.size:
            have, need = shown_size((sample.height, sample.width)), shown_size(server.size)
            raise UsageError(
                f"--submit {server.name}: {printable(sample.image)} of {dataset.name} is {have}, "
                f"but the server's images are {need}"
            )
        other = keys.setdefault(match["key"], sample.image)
        if other != sample.image:
            raise UsageError(
                f"--submit {server.name}: {printable(sample.image)} and {printable(other)} are "
                "one image to the server"
            )
        names[sample.image] = {
            folder: str(PurePosixPath(folder) / f"{stem}.png") for folder in server.folders
        }
    return names


def check_package(path: Path, server: Server, members: Mapping[str, str]) -> None:
    """Read a finished zip from the disk and check all that a server would stumble over.

    Args:
        path: The zip.
        server: Who is to take it.
        members: The folder of each file that must be in it; nothing else may be.

    Raises:
        DataError: Everything that is wrong with it, a line each.
    """
    faults: list[str] = []
    try:
        with zipfile.ZipFile(path) as package:
            listed = package.namelist()
            faults += _wrong_names(listed, members)
            for name in sorted(set(listed) & set(members)):
                faults += _wrong_file(name, package.read(name), server, members[name])
    except (OSError, zipfile.BadZipFile) as error:
        faults.append(f"cannot be read: {error}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise DataError(
            f"{path}: is no package for {server.name}:\n  " + "\n  ".join([*faults[:_SHOWN], *more])
        )


def allowed(server: Server, folder: str) -> frozenset[int]:
    """Return the values that files of a folder may hold; all 16 bits in `confidence`."""
    if folder == "confidence":
        return frozenset(range(2**16))
    table = class_table("cityscapes19")
    if server.ids == "label":
        return frozenset(own[0] for own in table.ids)
    void = {255} if folder == "labelTrainIds_invalid" else set()
    return frozenset(range(len(table.classes))) | void


def _wrong_names(listed: Sequence[str], members: Mapping[str, str]) -> list[str]:
    found = set(listed)
    twice = [name for name, times in Counter(listed).items() if times > 1]
    wrong = (
        ("missing", sorted(set(members) - found)),
        ("not asked for", sorted(found - set(members))),
        ("twice", twice),
    )
    return [
        f"{len(names)} files {what}: {printable(', '.join(names[:_SHOWN]))}"
        for what, names in wrong
        if names
    ]


def _wrong_file(name: str, data: bytes, server: Server, folder: str) -> list[str]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return [f"{name}: is no image"]
    depth = np.uint16 if folder == "confidence" else np.uint8
    if pixels.ndim != 2 or pixels.dtype != depth:
        return [f"{name}: is not one channel of {np.dtype(depth).itemsize * 8} bits"]
    if pixels.shape != server.size:
        return [f"{name}: is {shown_size((pixels.shape[0], pixels.shape[1]))}"]
    if folder == "confidence":
        return []
    counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel()
    strange = sorted(set(np.flatnonzero(counts).tolist()) - allowed(server, folder))
    return [f"{name}: holds {', '.join(map(str, strange))}, no {server.ids} ids"] if strange else []
