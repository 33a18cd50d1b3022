"""`--keep-best CRITERION`: the best checkpoint so far, without a label of the target."""

import logging
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from udaseg import build
from udaseg.commands.candidates import Candidate, Sets, open_sets
from udaseg.commands.measuring import measure
from udaseg.data import ClassSpace
from udaseg.engine import Fit
from udaseg.errors import DataError
from udaseg.evaluation import CRITERIA
from udaseg.recipe import Recipe
from udaseg.reporting import read_json, write_json_atomic

log = logging.getLogger(__name__)

_IMAGES = 50
_NEED_SOURCE = ("source", "drift")
_RECORD = "best.json"


def open_keeping_sets(recipe: Recipe, root: Path) -> Sets | None:
    """Return the images that checkpoints are looked at with, or None where none are compared.

    Raises:
        DataError: The criterion needs images that are not at hand.
    """
    criterion = recipe.machine.keep_best
    if criterion is None:
        return None
    sets = open_sets(recipe, None, None, _IMAGES, oracle=False, root=root)
    if criterion not in _NEED_SOURCE:
        return replace(sets, source=None)
    if sets.source is None:
        raise DataError(f"machine.keep_best={criterion} needs the source, which is not at hand")
    return sets


def best_folder(run: Path, criterion: str) -> Path:
    """Return where the best checkpoint of a run by a criterion lies."""
    return run / "checkpoints" / f"best-{criterion}"


def read_record(run: Path, criterion: str) -> dict[str, Any]:
    """Return `best.json`: the values of all checkpoints that were looked at, and which is kept."""
    steps = read_json(best_folder(run, criterion) / _RECORD).get("steps")
    return {"criterion": criterion, "steps": steps if isinstance(steps, dict) else {}}


class Keeper:
    """Keeps the best checkpoint of a run beside the newest ones.

    What it knows lies in the run, so a run that is resumed goes on comparing. A network that calls
    nearly everything one class is kept only as long as there is no other.

    Args:
        recipe: Of the run, with a criterion.
        sets: What checkpoints are looked at with; no target label is in it.
        classes: Outputs of the network.
        folder: Of the run.

    Attributes:
        gave_up: The device could not do it, so nothing more is compared until a resume.
    """

    def __init__(self, recipe: Recipe, sets: Sets, classes: ClassSpace, folder: Path) -> None:
        assert recipe.machine.keep_best is not None
        self.criterion: str = recipe.machine.keep_best
        self._recipe, self._sets, self._classes, self._run = recipe, sets, classes, folder
        better = next(each.better for each in CRITERIA if each.name == self.criterion)
        self._sign = 1.0 if better == "higher" else -1.0
        self.gave_up = False

    def knows(self, step: int) -> bool:
        """Return whether the checkpoint of `step` was compared."""
        return str(step) in read_record(self._run, self.criterion)["steps"]

    def look(self, made: Fit, checkpoint: Path, step: int) -> float | None:
        """Compare a checkpoint that was just written, keep it if it is the best; return its value.

        Args:
            made: What trains; its student is what the checkpoint holds.
            checkpoint: The file.
            step: Of it.
        """
        student = made.objective.student
        was_training = student.training
        student.eval()
        loaded = build.LoadedRun(
            student, self._classes, self._recipe, step, checkpoint, made.device
        )
        candidate = Candidate(self._run, checkpoint, step)
        try:
            wanted = frozenset({self.criterion})
            measure(candidate, loaded, self._sets, device=str(made.device), wanted=wanted)
        finally:
            student.train(was_training)
        value = candidate.values[self.criterion]
        self._keep(checkpoint, step, value, candidate.collapsed)
        return value

    def _keep(self, checkpoint: Path, step: int, value: float | None, collapsed: bool) -> None:
        record = read_record(self._run, self.criterion)
        folder = best_folder(self._run, self.criterion)
        steps: dict[str, dict[str, Any]] = record["steps"]
        steps[str(step)] = {"value": value, "collapsed": collapsed}
        best = max(steps, key=lambda each: (*self._merit(steps[each]), int(each)))
        if best == str(step):
            _place(checkpoint, folder)
            shown = "-" if value is None else f"{value:.4f}"
            log.info("step %d is the best so far by %s (%s)", step, self.criterion, shown)
        write_json_atomic(folder / _RECORD, {**record, "best": int(best), "steps": steps})
        if best == str(step):
            _drop_others(checkpoint, folder)

    def _merit(self, known: dict[str, Any]) -> tuple[bool, float]:
        value = known.get("value")
        if value is None or math.isnan(value):
            return False, -math.inf
        return not known.get("collapsed"), self._sign * value


def keep_choice(run: Path, name: str, checkpoint: Path) -> Path:
    """Let a run's `checkpoints/best-<name>` hold one of its checkpoints; return the folder."""
    folder = best_folder(run, name)
    _place(checkpoint, folder)
    _drop_others(checkpoint, folder)
    return folder


def _place(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # the manifest last: a checkpoint without one is none
    for part in (checkpoint, checkpoint.with_suffix(".json")):
        _link(part, folder / part.name)


def _drop_others(checkpoint: Path, folder: Path) -> None:
    for old in folder.glob("step-*"):
        if old.stem != checkpoint.stem:
            old.unlink()


def _link(path: Path, to: Path) -> None:
    """Let `to` be the same file, or a copy where the file system has no links."""
    temporary = to.with_name(f"{to.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(to)
