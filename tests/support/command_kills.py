"""Kill a command before one of its changes on the disk, then go on from what it left."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import udaseg
from tests.support.kills import die_at
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.runs.leftovers import _LEFTOVER

_CONTEXT = get_context("fork")
_SMALL = [*TINY, "machine.checkpoint_every=1", "machine.loggers=[]", "machine.workers=0"]


def train(root: Path, run: Path, *, resume: bool = False, **options: Any) -> None:
    """Train two steps on the source, or go on with such a run."""
    recipe = shipped("toyland/source_only", [*_SMALL, "steps=2"])
    if resume:
        udaseg.train(recipe, options=udaseg.TrainOptions(root=root, resume=run))
    else:
        udaseg.train(recipe, out=run, options=udaseg.TrainOptions(root=root, **options))


def in_child(act: Callable[[], object], at: int = 0) -> tuple[int | None, int]:
    """Act in another process, killed before change `at`; return exit code and number of changes."""
    changes = _CONTEXT.Value("i", 0)

    def work() -> None:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        die_at(at, changes)
        act()
        os._exit(0)

    process = _CONTEXT.Process(target=work)
    process.start()
    process.join(600)
    return process.exitcode, changes.value


@dataclass
class Kills:
    """Results of the kills of one command.

    Attributes:
        kills: Commands that were killed before they had ended.
        wrong: What was wrong after the command that went on.
    """

    kills: int = 0
    wrong: list[str] = field(default_factory=list)


def of_training(root: Path, base: Path, folder: Path, number: int, *, overwrite: bool) -> Kills:
    """Kill `train --overwrite` of a finished run, or `train --init`, and go on with one command."""
    act = partial(train, root, init=None if overwrite else base, overwrite=overwrite)

    def begin(run: Path) -> None:
        if overwrite:
            shutil.copytree(base, run)

    def go_on(run: Path) -> None:
        if (run / "recipe.yaml").exists() and not overwrite:
            train(root, run, resume=True)
        else:
            act(run=run)

    return _campaign(folder, number, begin, lambda run: act(run=run), go_on)


def of_reading(base: Path, folder: Path, number: int, act: Callable[[Path], object]) -> Kills:
    """Kill a command that reads a finished run and writes into it, and give it again."""
    return _campaign(folder, number, lambda run: shutil.copytree(base, run), act, act)


def _campaign(
    folder: Path,
    number: int,
    begin: Callable[[Path], object],
    act: Callable[[Path], object],
    go_on: Callable[[Path], object],
) -> Kills:
    rng, told, run = random.Random(0), Kills(), folder / "run"
    begin(run)
    code, changes = in_child(partial(act, run))
    assert code == 0
    calm = _result(run)
    for _ in range(number):
        shutil.rmtree(run)
        begin(run)
        at = rng.randint(1, changes)
        code, _ = in_child(partial(act, run), at)
        told.kills += code != 0
        code, _ = in_child(partial(go_on, run))
        if code != 0:
            told.wrong.append(f"change {at}: exit {code} of the command that goes on")
        elif (found := _result(run)) != calm:
            told.wrong.append(f"change {at}: {_differences(calm, found)}")
    shutil.rmtree(run)
    return told


def _result(run: Path) -> dict[str, object]:
    """Return the names of all files, leftovers too, and contents of those that do not tell time."""
    found: dict[str, object] = {}
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if path.is_file() or _LEFTOVER.fullmatch(path.name):
            found[name] = b""
            if path.suffix == ".pt":  # a resumed run writes the same tensors, in another pickle
                loaded = torch.load(path, weights_only=True)["objective"]
                found[name] = {key: value.tolist() for key, value in loaded.items()}
            elif path.name == "selection.json":  # that of a calibration has the bytes' digest
                found[name] = path.read_bytes()
    return found


def _differences(calm: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    return sorted(name for name in calm.keys() | found.keys() if calm.get(name) != found.get(name))
