"""Writes toyland to a folder of PNG files, completely or not at all."""

import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import cv2

from udaseg.data.files.forms import parse_form
from udaseg.data.files.parallel import without_main_module
from udaseg.data.toyland.city import CITIES, Domain
from udaseg.data.toyland.render import render
from udaseg.errors import DataError
from udaseg.files import file_lock

VERSION = 1
"""Must increase whenever the same seed gives different images."""

SETTINGS_NAME = "toyland.json"
TOYLAND_SIZE = (128, 256)
DEFAULT_COUNTS = {"source/train": 400, "source/val": 100, "target/train": 400, "target/val": 100}
log = logging.getLogger(__name__)
Job = tuple[Path, Domain, str, int, int, tuple[int, int]]


def make_toyland(
    root: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write toyland below `root`, unless it already exists with the same seed and size."""
    with file_lock(root / ".toyland.lock"):
        for leftover in root.glob(".toyland-*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        write(
            root / "toyland",
            seed=seed,
            size=size or TOYLAND_SIZE,
            workers=os.cpu_count() or 1,
            on_progress=on_progress,
        )


def write(
    folder: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] = TOYLAND_SIZE,
    counts: Mapping[str, int] | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the benchmark to `folder`, or do nothing if it is already there.

    The folder gets `source/{train,val}/{images,labels}`, `target/{train,val}/images`,
    `target_labels/val` and `toyland.json`. No labels of target training images are written.

    Args:
        folder: Output folder; it appears complete or not at all.
        seed: Seed of all images.
        size: Height and width.
        counts: Number of images per key of `DEFAULT_COUNTS`, which gives those not named.
        workers: Number of rendering processes; 0 and 1 render in this process.
        on_progress: Called with the number of finished images and of all images.
    """
    settings = _settings(seed, size, counts or {})
    if _exists(folder, settings):
        log.info("%s is up to date", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp denies access to other users
        jobs = list(_jobs(temporary, settings))
        for done, _ in enumerate(_run(jobs, workers), 1):
            if on_progress is not None:
                on_progress(done, len(jobs))
        text = json.dumps(settings, indent=2) + "\n"
        (temporary / SETTINGS_NAME).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # _exists has checked that it is empty
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settings(seed: int, size: tuple[int, int], counts: Mapping[str, int]) -> dict[str, Any]:
    unknown = sorted(set(counts) - set(DEFAULT_COUNTS))
    if unknown:
        raise ValueError(f"no split {unknown}; toyland has {', '.join(DEFAULT_COUNTS)}")
    merged = {**DEFAULT_COUNTS, **counts}
    if min(merged.values()) < 0:
        raise ValueError(f"counts must not be negative, got {merged}")
    return {"version": VERSION, "seed": seed, "size": list(size), "counts": merged}


def _exists(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether toyland with these settings is in the folder; False if it may be written."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise DataError(
                f"{folder}: exists but is not a toyland folder (it has no {SETTINGS_NAME}); "
                "choose another folder, or move this one"
            )
        return False
    try:
        existing = parse_form(path.read_text(encoding="utf-8"), dict[str, Any])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); delete {folder}") from error
    different = [
        f"{key} is {existing.get(key)}, requested {value}"
        for key, value in settings.items()
        if existing.get(key) != value
    ]
    if different:
        raise DataError(
            f"{folder}: contains toyland with other settings ({'; '.join(different)}); "
            "delete the folder to render it again, or choose another one"
        )
    return True


def _jobs(folder: Path, settings: dict[str, Any]) -> Iterator[Job]:
    for domain in CITIES:
        for split in ("train", "val"):
            for subfolder in _folders(folder, domain, split):
                subfolder.mkdir(parents=True)
            for index in range(settings["counts"][f"{domain}/{split}"]):
                yield folder, domain, split, settings["seed"], index, tuple(settings["size"])


def _run(jobs: list[Job], workers: int) -> Iterator[None]:
    """Run the jobs and yield once per finished job."""
    if workers <= 1:
        yield from map(_do, jobs)
        return
    # spawn: threads and GPU contexts of the parent do not survive a fork
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        with without_main_module():  # map starts the processes
            finished = pool.map(_do, jobs, chunksize=16)
        yield from finished


def _end_with_parent() -> None:
    """End this process when its parent does, which a killed parent cannot ask for."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _do(job: Job) -> None:
    folder, domain, split, seed, index, size = job
    image, label = render(domain, seed=seed, split=split, index=index, size=size)
    pictures = (image[..., ::-1], label)  # the label is left out where there is no folder for it
    for subfolder, pixels in zip(_folders(folder, domain, split), pictures, strict=False):
        _, data = cv2.imencode(".png", pixels)
        (subfolder / f"{index:05d}.png").write_bytes(data.tobytes())


def _folders(folder: Path, domain: Domain, split: str) -> list[Path]:
    """Return the folders of images and, if they may be known, of labels."""
    images = folder / domain / split / "images"
    if domain == "source":
        return [images, folder / domain / split / "labels"]
    # the labels of the target are separate, for evaluation only
    return [images, folder / "target_labels" / split] if split == "val" else [images]
