"""`udaseg eval --submit`: a package for a test server, which is checked once it is written."""

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
        data: What to predict; None takes the recipe's validation, else its target.
        split: Which split of it; None takes `test`, or the only one.
        weights: `student` or `teacher`.
        flip: Average with the mirrored image.
        scales: Average over these sizes.
        window: Sliding window (height, width); None looks at the whole image.
        batch: Images at a time; None chooses.
        out: Folder of the zip; None is `submissions/` in the run.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        UsageError: The images are not of the server's layout, the network has other classes, or
            the package exists.
        DataError: No images, or the finished package is not as it must be.
    """
    taker = SERVERS[server]
    loaded = build.load_run(run, weights=weights, device=device)
    table = np.frombuffer(lookup_table(server_ids(loaded.classes, taker.ids)), np.uint8)
    asked = Look(flip=flip, scales=scales, window=window, batch=batch)
    dataset, look = chosen_data(loaded.recipe, data, asked, root)
    split = split or _test_split(dataset)
    samples = dataset.split(split)
    names = member_names(taker, dataset, samples)
    words = [*([] if weights == "student" else [weights]), *look_words(look)]
    step = f"step-{loaded.step:06d}"
    name = "+".join([f"{server}-{dataset.name}-{split}-{step}", *words]) + ".zip"
    path = (out or run_of(run) / "submissions") / name
    if path.exists():
        raise UsageError(f"{path}: exists; move it away, or name another with --out")
    if len(samples) != taker.images:
        log.warning(
            "the test set of %s has %d images, split '%s' of %s has %d: the server will refuse it",
            *(server, taker.images, split, dataset.name, len(samples)),
        )
    looks = look_at(
        *(loaded.segmenter, dataset, samples, look),
        device=loaded.device,
        truth=False,
        confidence="confidence" in taker.folders,
    )
    with _written_whole(path) as package, WorkProgress("submit", len(samples)) as progress:
        for seen in looks:
            for folder, member in names[seen.sample.image].items():
                # without a time, so that the same predictions are the same bytes
                package.writestr(zipfile.ZipInfo(member), _png(_content(seen, folder, table)))
            progress.advance()
    folders = {name: folder for own in names.values() for folder, name in own.items()}
    check_package(path, taker, folders)
    _say(path, taker, folders)


def _test_split(dataset: PreparedDataset) -> str:
    """Return the split that is meant for a server.

    Raises:
        UsageError: There are several, and none is `test`.
    """
    if "test" in dataset.splits or len(dataset.splits) == 1:
        return "test" if "test" in dataset.splits else next(iter(dataset.splits))
    raise UsageError(
        f"{dataset.name} has no split 'test', but {', '.join(dataset.splits)}; name one with "
        "--split, or give the folder of the test images as --data"
    )


def _content(seen: Labelled, folder: str, table: NDArray[np.uint8]) -> NDArray[np.integer[Any]]:
    """Return the pixels of one file of the package."""
    if folder == "confidence":
        assert seen.confidence is not None
        sure = np.nan_to_num(seen.confidence).clip(0, 1)
        return np.asarray(np.rint(sure * _CERTAIN), np.uint16)
    return np.asarray(cv2.LUT(seen.labels, table), np.uint8)


def _png(pixels: NDArray[np.integer[Any]]) -> bytes:
    ok, encoded = cv2.imencode(".png", pixels, _PNG)
    if not ok:
        raise ValueError(f"{pixels.shape} could not be encoded as a PNG")
    return encoded.tobytes()


@contextmanager
def _written_whole(path: Path) -> Iterator[zipfile.ZipFile]:
    """Give a zip that appears under its name once all is in it, or not at all."""
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
    """Say on stdout where the package is and what was checked."""
    each = len(folders) // len(server.folders)
    kept = ", ".join(folder for folder in server.folders if folder)
    lines = (
        f"{printable(str(path))}: {path.stat().st_size / 1e6:.1f} MB",
        f"checked: {each} images{f' in each of {kept}' if kept else ''}, all of "
        f"{shown_size(server.size)}, {server.ids} ids, named as the server asks, nothing else "
        "in the zip",
        *(
            []
            if each == server.images
            else [f"but the test set of {server.name} has {server.images} images"]
        ),
        f"submit it at {server.home}",
    )
    Console(highlight=False, soft_wrap=True).print(Text("\n".join(lines)))
