"""Kill `predict` after a time or at the n-th disk write, and check what it leaves."""

import contextlib
import io
import logging
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from tests.support.bad_inputs import write_image
from tests.support.films import write_film
from tests.support.kills import die_at
from tests.support.predicting import predict

KINDS = ("color", "ids", "overlay", "confidence")
_TEMPORARY = re.compile(r"(^|/)\.[^/]*(\.tmp|video-)")


def masks(folder: Path, **options: Any) -> None:
    """Predict `folder/in` to `folder/masks`; `load` is patched to return a small network."""
    with contextlib.redirect_stdout(io.StringIO()):
        predict(folder / "in", out=folder / "masks", save=KINDS, **options)


def write_inputs(folder: Path, images: int, films: int) -> None:
    """Write images of two sizes and short videos."""
    for number in range(images):
        size = (48, 64) if number % 2 else (40, 40)
        write_image(folder / "in" / f"{number % 3}" / f"{number:03d}.png", number, size)
    for number in range(films):
        write_film(folder / "in" / f"film{number}.mp4", 8, seed=number)


def left(folder: Path) -> dict[str, bytes]:
    """Return the contents of files with final names, by path in `folder/masks`."""
    found = {}
    for path in sorted((folder / "masks").rglob("*")):
        name = path.relative_to(folder / "masks").as_posix()
        if path.is_file() and not _TEMPORARY.search(name):
            found[name] = path.read_bytes()
    return found


def hidden(folder: Path) -> list[str]:
    """Return the paths with temporary names."""
    names = (path.relative_to(folder).as_posix() for path in (folder / "masks").rglob("*"))
    return [name for name in names if _TEMPORARY.search(name)]


def killed(folder: Path, *, after_s: float | None = None, at: int | None = None) -> bool:
    """Predict in a separate process and kill it; return whether it was still running."""
    context = get_context("fork")
    started = context.Event()

    def work() -> None:
        logging.disable(logging.CRITICAL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        if at is not None:
            die_at(at)
        started.set()
        masks(folder, resume=(folder / "masks").exists())
        os._exit(0)

    process = context.Process(target=work)
    # OpenCV's threads do not survive a fork, and the child would wait for them
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    process.start()
    cv2.setNumThreads(threads)
    started.wait(60)
    process.join(after_s if at is None else 120)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


@dataclass
class Told:
    """Results of many kills.

    Attributes:
        kills: Kills that hit a running process.
        partial: Files with final names that differ from those of an uninterrupted run.
        temporary: Kills that left files with temporary names.
        wrong: Files that differ after the final, uninterrupted run.
        seconds: Duration of an uninterrupted run.
    """

    kills: int = 0
    partial: list[str] = field(default_factory=list)
    temporary: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def look(self, folder: Path, calm: dict[str, bytes]) -> None:
        """Compare the files left by a kill with the expected files."""
        self.kills += 1
        self.temporary += bool(hidden(folder))
        self.partial += [name for name, data in left(folder).items() if data != calm.get(name)]

    def end(self, folder: Path, calm: dict[str, bytes]) -> None:
        """Complete a run and compare all files."""
        masks(folder, resume=(folder / "masks").exists())
        found = left(folder)
        self.wrong += hidden(folder)
        self.wrong += [
            name for name in sorted(calm.keys() | found.keys()) if found.get(name) != calm.get(name)
        ]


def campaign(folder: Path, kills: int, seed: int) -> Told:
    """Kill predictions at random times, each resuming the previous one, `kills` times in all."""
    masks(folder)
    calm = left(folder)
    shutil.rmtree(folder / "masks")
    started = time.monotonic()
    killed(folder, at=10**9)
    took = time.monotonic() - started
    rng, told = random.Random(seed), Told(seconds=took)
    while told.kills < kills:
        shutil.rmtree(folder / "masks", ignore_errors=True)
        while told.kills < kills and killed(folder, after_s=rng.uniform(0, 0.5 * took)):
            told.look(folder, calm)
        told.end(folder, calm)
    return told


def at_every_change(folder: Path, every: int = 1) -> Told:
    """Kill a new prediction before its first, second, ... disk write, then complete it."""
    masks(folder)
    calm = left(folder)
    told, at = Told(), 1
    shutil.rmtree(folder / "masks")
    while killed(folder, at=at):
        told.look(folder, calm)
        told.end(folder, calm)
        shutil.rmtree(folder / "masks")
        at += every
    return told
