"""`udaseg eval --submit`: write a package for a test server, and check it."""

import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands.label_files import server_ids
from udaseg.commands.looking import Labelled, Look, look_at
from udaseg.commands.run_folder import run_of
from udaseg.commands.scoring import chosen_data, look_words
from udaseg.commands.submission_servers import (
    SERVERS,
    Server,
    check_package,
    member_names,
)
from udaseg.commands.summary import shown_size
from udaseg.data import PreparedDataset, lookup_table
from udaseg.errors import UsageError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)

_CERTAIN = 65535
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


def submit(
    *,
    run: Path,
    server: str,
    data: str | None,
    split: str | None,
    weights: str,
    flip: bool,
    scales: tuple[float, ...],
    window: tuple[int, int] | None,
    batch: int | None = None,
    out: Path | None,
    device: str,
    root: Path,
) -> None:
    """Write the predictions of a split as a package for a test server, and check the package.

    Args:
        run: Run folder or checkpoint.
        server: One of `SERVERS`.
        data: Dataset to predict; None takes the recipe's validation, else its target.
        split: Split of the dataset; None takes `test`, or the only one.
        weights: `student` or `teacher`.
        flip: Average with the mirrored image.
        scales: Average over these scales.
        window: Sliding window (height, width); None predicts the whole image at once.
        batch: Images per batch; None chooses.
        out: Folder of the zip; None is `submissions/` in the run.
        device: Device to compute on.
        root: Folder of the prepared data.

    Raises:
        UsageError: The images do not have the server's layout, the network has other classes, or
            the package exists.
        DataError: There are no images, or the finished package is invalid.
    """
    server_spec = SERVERS[server]
    loaded = build.load_run(run, weights=weights, device=device)
    table = np.frombuffer(lookup_table(server_ids(loaded.classes, server_spec.ids)), np.uint8)
    requested = Look(flip=flip, scales=scales, window=window, batch=batch)
    dataset, options = chosen_data(loaded.recipe, data, requested, root)
    split = split or _test_split(dataset)
    samples = dataset.split(split)
    names = member_names(server_spec, dataset, samples)
    variants = [*([] if weights == "student" else [weights]), *look_words(options)]
    step = f"step-{loaded.step:06d}"
    name = "+".join([f"{server}-{dataset.name}-{split}-{step}", *variants]) + ".zip"
    path = (out or run_of(run) / "submissions") / name
    if path.exists():
        raise UsageError(f"{path}: exists already; move it, or choose another folder with --out")
    if len(samples) != server_spec.images:
        log.warning(
            "the test set of %s has %d images, split '%s' of %s has %d: the server will refuse it",
            server,
            server_spec.images,
            split,
            dataset.name,
            len(samples),
        )
    predictions = look_at(
        loaded.segmenter,
        dataset,
        samples,
        options,
        device=loaded.device,
        truth=False,
        confidence="confidence" in server_spec.folders,
    )
    with _written_whole(path) as package, WorkProgress("submit", len(samples)) as progress:
        for prediction in predictions:
            for folder, member in names[prediction.sample.image].items():
                # without a timestamp, so that equal predictions give identical files
                package.writestr(zipfile.ZipInfo(member), _png(_content(prediction, folder, table)))
            progress.advance()
    folders = {name: folder for members in names.values() for folder, name in members.items()}
    check_package(path, server_spec, folders)
    _say(path, server_spec, folders)


def _test_split(dataset: PreparedDataset) -> str:
    """Return the default split for a server.

    Raises:
        UsageError: There are several splits, and none is `test`.
    """
    if "test" in dataset.splits or len(dataset.splits) == 1:
        return "test" if "test" in dataset.splits else next(iter(dataset.splits))
    raise UsageError(
        f"{dataset.name} has no split 'test', but {', '.join(dataset.splits)}; choose one with "
        "--split, or give the folder of the test images as --data"
    )


def _content(
    prediction: Labelled, folder: str, table: NDArray[np.uint8]
) -> NDArray[np.integer[Any]]:
    """Return the pixels of one file of the package."""
    if folder == "confidence":
        assert prediction.confidence is not None
        confidence = np.nan_to_num(prediction.confidence).clip(0, 1)
        return np.asarray(np.rint(confidence * _CERTAIN), np.uint16)
    return np.asarray(cv2.LUT(prediction.labels, table), np.uint8)


def _png(pixels: NDArray[np.integer[Any]]) -> bytes:
    ok, encoded = cv2.imencode(".png", pixels, _PNG)
    if not ok:
        raise ValueError(f"{pixels.shape} could not be encoded as a PNG")
    return encoded.tobytes()


@contextmanager
def _written_whole(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip that is renamed to its path when complete, and deleted on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as package:
            yield package
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _say(path: Path, server: Server, folders: Mapping[str, str]) -> None:
    """Print to stdout where the package is and what was checked."""
    images = len(folders) // len(server.folders)
    folder_names = ", ".join(folder for folder in server.folders if folder)
    lines = (
        f"{printable(str(path))}: {path.stat().st_size / 1e6:.1f} MB",
        f"checked: {images} images{f' in each of {folder_names}' if folder_names else ''}, all "
        f"of {shown_size(server.size)}, {server.ids} ids, named as the server requires, no other "
        "files in the zip",
        *(
            []
            if images == server.images
            else [f"but the test set of {server.name} has {server.images} images"]
        ),
        f"submit it at {server.home}",
    )
    Console(highlight=False, soft_wrap=True).print(Text("\n".join(lines)))
