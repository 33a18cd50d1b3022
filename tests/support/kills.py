"""Kill `prepare` at any moment: after a time, or at the n-th disk write."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import files
from tests.support.hostile import packed, tree
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions

_CHANGES = {
    *("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.chmod"),
    "shutil.rmtree",
}


def archived_set(root: Path, parts: int = 6, pairs: int = 4, size: tuple[int, int] = (40, 60)):
    """Write a small GTA5 dataset as zips of images and labels."""
    for part in range(1, parts + 1):
        images, labels = {}, {}
        for number in range(pairs):
            name = f"{part * 100 + number:05d}.png"
            ids = np.random.default_rng(number).choice([7, 8, 11, 26], size)
            images[f"images/{name}"] = files.image_png(*size, part * 100 + number)
            labels[f"labels/{name}"] = files.palette_png(ids)
        packed(root / f"{part:02d}_images.zip", images)
        packed(root / f"{part:02d}_labels.zip", {**labels, "read.txt": bytes([part])})


def result(root: Path) -> dict[str, object]:
    """Return all that `prepare` leaves: contents, and times except those of JSON files."""
    found: dict[str, object] = {}
    for folder in ("unpacked", "prepared"):
        for name, file in tree(root / folder).items():
            if name.endswith((".json", ".jsonl")):
                found[f"{folder}/{name}"] = file[0] if isinstance(file, tuple) else file
            elif not name.endswith((".lock", ".archives")):
                found[f"{folder}/{name}"] = file
    return found


def _prepare(root: Path, started, at: int | None) -> None:
    if at is not None:
        die_at(at)
    started.set()
    prepare_dataset("gta5", root=root, options=PrepareOptions(workers=1))
    os._exit(0)


def die_at(number: int, count: Any = None) -> None:
    """Kill this process right before its n-th disk write; `count.value` counts them if given."""
    changes = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        writes = event == "open" and any(sign in str(arguments[1]) for sign in "wax+")
        writes |= event == "open" and bool(int(arguments[2] or 0) & os.O_CREAT)
        if writes or event in _CHANGES:
            changes += 1
            if count is not None:
                count.value = changes
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(root: Path, *, after_s: float | None = None, at: int | None = None) -> bool:
    """Prepare in a separate process and kill it; return whether it was still running.

    Args:
        root: Folder of the archives.
        after_s: Seconds from the start to the kill.
        at: Kill it right before its n-th disk write instead.
    """
    context = get_context("fork")
    started = context.Event()
    process = context.Process(target=_prepare, args=(root, started, at))
    process.start()
    started.wait(30)
    process.join(after_s if at is None else 60)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def at_once(root: Path, number: int) -> list[int | None]:
    """Prepare in `number` processes at once and return their exit codes."""
    context = get_context("fork")
    ready = context.Event()
    found = [context.Process(target=_prepare, args=(root, ready, None)) for _ in range(number)]
    for process in found:
        process.start()
    for process in found:
        process.join(120)
    return [process.exitcode for process in found]


@dataclass
class Campaigns:
    """Results of many campaigns of kills.

    Attributes:
        kills: Kills that hit a running process.
        wrong: Differences from an uninterrupted run at the end of a campaign.
        stages: Number of kills in each stage.
    """

    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)

    def hit(self, root: Path) -> None:
        """Count a kill and the stage that it hit."""
        self.kills += 1
        stage = "before the first file"
        for name, found in (
            ("done, or a set replaced", root / "prepared/gta5/index.json"),
            ("while unpacking", root / "unpacked/.gta5.tmp"),
            ("while reading pairs", root / "prepared/.gta5.tmp"),
            ("while replacing the folder", root / "prepared/.gta5.old"),
        ):
            if found.exists():
                stage = name
        self.stages[stage] = self.stages.get(stage, 0) + 1

    def compare(self, root: Path, calm: dict[str, object], what: str) -> None:
        """Prepare without interruption and compare the result with `calm`."""
        prepare_dataset("gta5", root=root, options=PrepareOptions(workers=1))
        found = result(root)
        self.wrong += [
            f"{what}: {name}"
            for name in sorted(calm.keys() | found.keys())
            if found.get(name, "missing") != calm.get(name, "missing")
        ]


def calm_run(root: Path) -> tuple[dict[str, object], float]:
    """Return the result of an uninterrupted run in `root` and its seconds, then clear `root`."""
    started = time.monotonic()
    prepare_dataset("gta5", root=root, options=PrepareOptions(workers=1))
    took = time.monotonic() - started
    calm = result(root)
    clear(root)
    return calm, took


def clear(root: Path) -> None:
    """Remove everything except the archives."""
    for folder in ("unpacked", "prepared"):
        shutil.rmtree(root / folder, ignore_errors=True)


def campaigns(root: Path, number: int, kills: int, seed: int) -> Campaigns:
    """Run campaigns of timed kills; each starts from scratch and ends with a complete run."""
    calm, took = calm_run(root)
    rng, told = random.Random(seed), Campaigns()
    for campaign in range(number):
        clear(root)
        done = 0
        while done < kills:
            if killed(root, after_s=rng.uniform(0, 0.9 * took)):
                done += 1
                told.hit(root)
            else:  # it finished before the kill
                told.compare(root, calm, f"campaign {campaign}")
                clear(root)
        told.compare(root, calm, f"campaign {campaign}")
    return told


def at_every_change(root: Path, every: int = 1) -> Campaigns:
    """Kill a new run before its first, second, ... disk write, then complete it."""
    calm, _ = calm_run(root)
    return _each_change(root, every, calm, lambda: clear(root))


def at_every_change_of_a_second_run(root: Path, every: int = 1) -> Campaigns:
    """Likewise, but kill a run that replaces a prepared dataset after one label has changed."""
    prepare_dataset("gta5", root=root, options=PrepareOptions(workers=1))
    labels = sorted((root / "unpacked/gta5/labels").iterdir())
    labels[0].write_bytes(labels[-1].read_bytes())
    shutil.copytree(root / "prepared", root / "before")

    def begin() -> None:
        shutil.rmtree(root / "prepared")
        shutil.copytree(root / "before", root / "prepared")

    prepare_dataset("gta5", root=root, options=PrepareOptions(workers=1))
    calm = result(root)
    begin()
    return _each_change(root, every, calm, begin)


def _each_change(
    root: Path, every: int, calm: dict[str, object], begin: Callable[[], None]
) -> Campaigns:
    told, at = Campaigns(), 1
    while killed(root, at=at):
        told.hit(root)
        told.compare(root, calm, f"change {at}")
        begin()
        at += every
    return told
