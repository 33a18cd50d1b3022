"""Writes toyland to a folder of PNG files, completely or not at all."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.processes import without_main_module
from udaseg.data.toyland.city import Domain
from udaseg.data.toyland.scene import render
from udaseg.errors import DataError

VERSION = 1
"""Must increase whenever the same seed gives different images."""

SETTINGS_NAME = "toyland.json"
DEFAULT_COUNTS: Mapping[str, int] = {
    "source/train": 400,
    "source/val": 100,
    "target/train": 400,
    "target/val": 100,
}
_CHUNK = 16
logger = logging.getLogger(__name__)
Job = tuple[Path, Domain, str, int, int, tuple[int, int]]


def write(
    folder: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] = (128, 256),
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
        size: Height and width of the images.
        counts: Number of images of "source/train", "source/val", "target/train" and "target/val";
            missing keys keep their defaults.
        workers: Number of rendering processes; 0 and 1 render in this process.
        on_progress: Called with the number of finished images and of all images.

    Raises:
        DataError: The folder contains other files, or toyland with other settings.
        ValueError: A count is negative or has an unknown split.
    """
    settings = _settings(seed, size, counts or {})
    if _is_there(folder, settings):
        logger.info("%s is up to date", folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp denies access to other users
        _write_images(temporary, settings, workers, on_progress)
        text = json.dumps(settings, indent=2) + "\n"
        (temporary / SETTINGS_NAME).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # _is_there has checked that it is empty
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


def _is_there(folder: Path, settings: dict[str, Any]) -> bool:
    path = folder / SETTINGS_NAME
    if not path.is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        if folder.exists():
            raise DataError(
                f"{folder}: exists but is not a toyland folder (it has no {SETTINGS_NAME}); "
                "choose another folder, or move this one"
            )
        return False
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); delete {folder}") from error
    existing = existing if isinstance(existing, dict) else {}
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


def _write_images(
    folder: Path,
    settings: dict[str, Any],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    jobs = list(_jobs(folder, settings))
    done = 0
    for finished in _finished(jobs, workers):
        done += finished
        if on_progress is not None:
            on_progress(done, len(jobs))


def _jobs(folder: Path, settings: dict[str, Any]) -> Iterator[Job]:
    height, width = settings["size"]
    domains: tuple[Domain, ...] = ("source", "target")
    for domain in domains:
        for split in ("train", "val"):
            _image_folder(folder, domain, split).mkdir(parents=True)
            labels = _label_folder(folder, domain, split)
            if labels is not None:
                labels.mkdir(parents=True)
            for index in range(settings["counts"][f"{domain}/{split}"]):
                yield folder, domain, split, settings["seed"], index, (height, width)


def _finished(jobs: list[Job], workers: int) -> Iterator[int]:
    """Run the jobs and yield the number of newly finished ones."""
    if workers <= 1:
        for job in jobs:
            yield _do([job])
        return
    chunks = [jobs[begin : begin + _CHUNK] for begin in range(0, len(jobs), _CHUNK)]
    # spawn: threads and GPU contexts of the parent do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        with without_main_module():  # map starts the processes
            finished = pool.map(_do, chunks)
        yield from finished


def _do(jobs: list[Job]) -> int:
    for folder, domain, split, seed, index, size in jobs:
        image, label = render(domain, seed=seed, split=split, index=index, size=size)
        name = f"{index:05d}.png"
        _write_png(_image_folder(folder, domain, split) / name, image[..., ::-1])
        labels = _label_folder(folder, domain, split)
        if labels is not None:
            _write_png(labels / name, label)
    return len(jobs)


def _image_folder(folder: Path, domain: Domain, split: str) -> Path:
    return folder / domain / split / "images"


def _label_folder(folder: Path, domain: Domain, split: str) -> Path | None:
    """Return the folder of labels; those of the target are separate, for evaluation only."""
    if domain == "source":
        return folder / domain / split / "labels"
    return folder / "target_labels" / split if split == "val" else None


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    coded, data = cv2.imencode(".png", pixels)
    if not coded:
        raise ValueError(f"OpenCV cannot encode {pixels.shape} {pixels.dtype} as PNG")
    path.write_bytes(data.tobytes())
