"""`--keep-best CRITERION`: keep the best checkpoint of a run, without target labels."""

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
    """Return the images that checkpoints are evaluated on, or None if no criterion is set.

    Raises:
        DataError: The images that the criterion needs are not available.
    """
    criterion = recipe.machine.keep_best
    if criterion is None:
        return None
    sets = open_sets(recipe, None, None, _IMAGES, oracle=False, root=root)
    if criterion not in _NEED_SOURCE:
        return replace(sets, source=None)
    if sets.source is None:
        raise DataError(
            f"machine.keep_best={criterion} needs the source images, which are not available"
        )
    return sets


def best_folder(run: Path, criterion: str) -> Path:
    """Return the folder of a run's best checkpoint by a criterion."""
    return run / "checkpoints" / f"best-{criterion}"


def read_record(run: Path, criterion: str) -> dict[str, Any]:
    """Return `best.json`: the values of all compared checkpoints, and which one is kept."""
    steps = read_json(best_folder(run, criterion) / _RECORD).get("steps")
    return {"criterion": criterion, "steps": steps if isinstance(steps, dict) else {}}


class Keeper:
    """Keep the best checkpoint by a criterion that needs no target labels.

    The values of all checkpoints are stored in the run, so a resumed run continues the comparison.
    A network that predicts one class almost everywhere is kept only if there is no other.

    Args:
        recipe: Recipe of the run, with a criterion.
        sets: Images to evaluate checkpoints on, without target labels.
        classes: Outputs of the network.
        folder: Run folder.

    Attributes:
        gave_up: The device ran out of memory; nothing more is compared until a resume.
    """

    def __init__(self, recipe: Recipe, sets: Sets, classes: ClassSpace, folder: Path) -> None:
        assert recipe.machine.keep_best is not None
        self.criterion: str = recipe.machine.keep_best
        self._recipe, self._sets, self._classes, self._run = recipe, sets, classes, folder
        better = next(spec.better for spec in CRITERIA if spec.name == self.criterion)
        self._sign = 1.0 if better == "higher" else -1.0
        self.gave_up = False

    def knows(self, step: int) -> bool:
        """Return whether the checkpoint of `step` has been compared."""
        return str(step) in read_record(self._run, self.criterion)["steps"]

    def look(self, setup: Fit, checkpoint: Path, step: int) -> float | None:
        """Evaluate a new checkpoint, keep it if it is the best, and return its value.

        Args:
            setup: Training setup; its student has the weights of the checkpoint.
            checkpoint: The checkpoint file.
            step: Step of the checkpoint.
        """
        student = setup.objective.student
        was_training = student.training
        student.eval()
        loaded = build.LoadedRun(
            student, self._classes, self._recipe, step, checkpoint, setup.device
        )
        candidate = Candidate(self._run, checkpoint, step)
        try:
            criteria = frozenset({self.criterion})
            measure(candidate, loaded, self._sets, device=str(setup.device), wanted=criteria)
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
        best = max(steps, key=lambda other: (*self._merit(steps[other]), int(other)))
        if best == str(step):
            _place(checkpoint, folder)
            value_text = "-" if value is None else f"{value:.4f}"
            log.info("step %d is the best so far by %s (%s)", step, self.criterion, value_text)
        write_json_atomic(folder / _RECORD, {**record, "best": int(best), "steps": steps})
        if best == str(step):
            _drop_others(checkpoint, folder)

    def _merit(self, entry: dict[str, Any]) -> tuple[bool, float]:
        value = entry.get("value")
        if value is None or math.isnan(value):
            return False, -math.inf
        return not entry.get("collapsed"), self._sign * value


def keep_choice(run: Path, name: str, checkpoint: Path) -> Path:
    """Replace the content of `checkpoints/best-<name>` by a checkpoint; return the folder."""
    folder = best_folder(run, name)
    _place(checkpoint, folder)
    _drop_others(checkpoint, folder)
    return folder


def _place(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # the manifest comes last: a checkpoint without a manifest is incomplete
    for file in (checkpoint, checkpoint.with_suffix(".json")):
        _link(file, folder / file.name)


def _drop_others(checkpoint: Path, folder: Path) -> None:
    for file in folder.glob("step-*"):
        if file.stem != checkpoint.stem:
            file.unlink()


def _link(path: Path, to: Path) -> None:
    """Hard-link `to` to the file, or copy it if the file system has no links."""
    temporary = to.with_name(f"{to.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(to)
