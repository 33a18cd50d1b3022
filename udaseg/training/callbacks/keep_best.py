"""`--keep-best CRITERION`: keep the best checkpoint of a run, without target labels."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError, NotFiniteError
from udaseg.files import write_json
from udaseg.inference.trained_model import Model
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.schema import Recipe
from udaseg.runs import best
from udaseg.runs.checkpoint import checkpoint_path
from udaseg.selection.candidates import Candidate, EvaluationSets, open_evaluation_sets
from udaseg.selection.criteria import CRITERIA
from udaseg.selection.measure import compute_criteria
from udaseg.text import first_line
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.memory import DEVICE_ERRORS
from udaseg.training.setup import TrainingSetup

log = logging.getLogger(__name__)
_NUM_IMAGES = 50
_SOURCE_CRITERIA = ("source", "drift")


def open_criterion_sets(recipe: Recipe, root: Path) -> EvaluationSets | None:
    """Return the images that checkpoints are evaluated on, or None if no criterion is set."""
    criterion = recipe.machine.keep_best
    if criterion is None:
        return None
    sets = open_evaluation_sets(recipe, None, None, _NUM_IMAGES, oracle=False, root=root)
    if criterion not in _SOURCE_CRITERIA:
        return replace(sets, source=None)
    if sets.source is None:
        raise DataError(
            f"machine.keep_best={criterion} needs the source images, which are not available"
        )
    return sets


class KeepBest(Callback):
    """Keeps the best checkpoint by a criterion that needs no target labels.

    The values of all checkpoints are stored in the run, so a resumed run continues the comparison.
    A network that predicts one class almost everywhere is kept only if there is no other.
    """

    ranks = "zero"

    def __init__(
        self, recipe: Recipe, sets: EvaluationSets, classes: ClassSpace, folder: Path
    ) -> None:
        assert recipe.machine.keep_best is not None
        self.criterion: str = recipe.machine.keep_best
        self._recipe, self._sets, self._classes, self._run = recipe, sets, classes, folder
        better = next(spec.better for spec in CRITERIA if spec.name == self.criterion)
        self._sign = 1.0 if better == "higher" else -1.0
        self._is_disabled = False

    def begin(self, state: TrainingState) -> None:
        """Compare the last checkpoint if a kill came between writing and comparing it."""
        path = checkpoint_path(self._run / "checkpoints", state.step)
        if path.is_file() and not self.has_compared(state.step):
            self.on_checkpoint(state, path)

    on_rewind = begin

    def on_checkpoint(self, state: TrainingState, path: Path) -> None:
        """Keep a new checkpoint if it is the best so far; nothing that fails here ends the run."""
        if self._is_disabled:
            return
        try:
            value = self.consider(state.setup, path, state.step)
        except (NotFiniteError, *DEVICE_ERRORS) as error:
            log.warning(
                "%s: no further checkpoints are compared in this run (%s)", path, first_line(error)
            )
            self._is_disabled = True
            return
        state.write_event({"select": {self.criterion: value}})

    def has_compared(self, step: int) -> bool:
        """Return whether the checkpoint of `step` has been compared."""
        return str(step) in best.read_record(self._run, self.criterion)["steps"]

    def consider(self, setup: TrainingSetup, checkpoint: Path, step: int) -> float | None:
        """Evaluate a new checkpoint, keep it if it is the best, and return its value.

        The student of `setup` must have the weights of the checkpoint.
        """
        student = setup.objective.student
        loaded = Model(student, self._classes, self._recipe, step, checkpoint, setup.device)
        candidate = Candidate(self._run, checkpoint, step)
        criteria = frozenset({self.criterion})
        with evaluation_mode(student):
            compute_criteria(
                candidate, loaded, self._sets, device=str(setup.device), criteria=criteria
            )
        value = candidate.values[self.criterion]
        self._update(checkpoint, step, value, candidate.collapsed)
        return value

    def _update(self, checkpoint: Path, step: int, value: float | None, collapsed: bool) -> None:
        record = best.read_record(self._run, self.criterion)
        folder = best.best_folder(self._run, self.criterion)
        steps: dict[str, dict[str, Any]] = record["steps"]
        steps[str(step)] = {"value": value, "collapsed": collapsed}
        best_step = max(map(int, steps), key=lambda each: (*self._sort_key(steps[str(each)]), each))
        if best_step == step:
            best.place_checkpoint(checkpoint, folder)
            value_text = "-" if value is None else f"{value:.4f}"
            log.info("step %d is the best so far by %s (%s)", step, self.criterion, value_text)
        write_json(folder / best.BEST_RECORD, {**record, "best": best_step, "steps": steps})
        if best_step == step:
            best.drop_other_checkpoints(checkpoint, folder)

    def _sort_key(self, entry: dict[str, Any]) -> tuple[bool, float]:
        value = entry.get("value")
        if value is None or math.isnan(value):
            return False, -math.inf
        return not entry.get("collapsed"), self._sign * value
