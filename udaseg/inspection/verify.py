"""Check that a run is complete, unchanged, and within its expected score."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from udaseg.errors import (
    CheckpointError,
    DataError,
    EnvironmentFault,
    GateError,
    RecipeError,
    UdasegError,
    UsageError,
)
from udaseg.files import read_json
from udaseg.recipe.load import from_dict, load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import determining_values, recipe_digest
from udaseg.runs.checkpoint import Checkpoint, load_checkpoint
from udaseg.runs.folder import read_num_processes
from udaseg.runs.scores import find_score_files, read_scores
from udaseg.training.seeds import SUMMARY

_FILES = ("command.txt", "environment.json", "status.json", "metrics.jsonl", "train.log")
_MAX_PROBLEMS = 10

Outcome = Literal["passed", "unreadable", "damaged", "incomplete", "out_of_range"]
# the worst outcome first
_ERRORS: dict[Outcome, type[UdasegError]] = {
    "unreadable": RecipeError,
    "damaged": CheckpointError,
    "incomplete": DataError,
    "out_of_range": GateError,
}
_KINDS = list(_ERRORS)


@dataclass(frozen=True)
class Check:
    """The result of one check of a run.

    Attributes:
        run: The run folder that was checked.
        name: What was checked: `recipe`, `files`, `status`, `metrics`, `checkpoints` or `score`.
        outcome: `passed`, or how it failed: `unreadable` (the recipe cannot be loaded), `damaged`
            (a checkpoint is not as it was saved), `incomplete` (something of a finished run is
            missing) or `out_of_range` (the score is outside of the expected range).
        message: The result as a sentence.
    """

    run: Path
    name: str
    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Verification:
    """The results of all checks of a run, or of each run in a folder of seeds.

    Attributes:
        checks: The results, in the order of the checks.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed, run by run, in each run the worst kind first."""
        runs = list(dict.fromkeys(check.run for check in self.checks))
        failed = [check for check in self.checks if check.outcome != "passed"]
        failed.sort(key=lambda check: (runs.index(check.run), _KINDS.index(check.outcome)))
        return tuple(failed)

    def raise_if_failed(self) -> None:
        """Raise one error with the messages of all failed checks; the worst kind decides which.

        Raises:
            RecipeError: A recipe cannot be loaded.
            CheckpointError: A checkpoint is damaged, or was made with another recipe.
            DataError: A run is not finished, or files are missing.
            GateError: The score is outside of the range that the recipe expects.
        """
        failed = self.failed
        if not failed:
            return
        # the lines of a recipe error begin with their own file and line
        lines = [
            check.message if check.outcome == "unreadable" else f"{check.run}: {check.message}"
            for check in failed[:_MAX_PROBLEMS]
        ]
        if len(failed) > _MAX_PROBLEMS:
            lines.append(f"and {len(failed) - _MAX_PROBLEMS} more")
        worst = min((check.outcome for check in failed), key=_KINDS.index)
        raise _ERRORS[worst]("\n".join(lines))


def verify(run: str | os.PathLike[str]) -> Verification:
    """Check a run, or all runs in a folder of seeds.

    Args:
        run: Run folder, or the folder of a training with several seeds.

    Returns:
        The result of each check. A check that fails raises nothing; `raise_if_failed` does.

    Raises:
        UsageError: The path is not a run.

    Example:
        verification = udaseg.verify("runs/city-rccr")
        verification.ok, [check.message for check in verification.failed]
    """
    path = Path(run)
    folders = [path]
    if (path / SUMMARY).is_file():
        folders = [recipe.parent for recipe in sorted(path.glob("s*/recipe.yaml"))]
    if not folders or not all((folder / "recipe.yaml").is_file() for folder in folders):
        raise UsageError(f"{path}: is not a run folder (no recipe.yaml)")
    return Verification(
        tuple(Check(folder, *result) for folder in folders for result in _check_run(folder))
    )


_Result = tuple[str, Outcome, str]  # name, outcome and message of a check


def _check_run(folder: Path) -> Iterator[_Result]:
    """Yield the results of all checks of a run; without a recipe there is nothing to compare."""
    try:
        recipe = load(folder / "recipe.yaml")
    except (RecipeError, EnvironmentFault) as error:
        yield "recipe", "unreadable", str(error)
        return
    digest = recipe_digest(recipe)[:12]
    yield "recipe", "passed", f"recipe {recipe.name}, seed {recipe.seed}, {digest}"
    for name in _FILES:
        if not (folder / name).is_file():
            yield "files", "incomplete", f"{name}: is missing"
    status = read_json(folder / "status.json")
    yield _check_status(status, recipe)
    if (folder / "metrics.jsonl").is_file():
        yield _check_metrics(folder / "metrics.jsonl", recipe, done=status.get("state") == "done")
    yield from _check_checkpoints(folder, recipe)
    yield from _check_score(folder, status.get("miou"), recipe)


def _check_status(status: Mapping[str, Any], recipe: Recipe) -> _Result:
    state, step = status.get("state"), status.get("step")
    if state == "done" and step == recipe.steps:
        return "status", "passed", f"finished, {recipe.steps} steps"
    progress = f", step {step} of {recipe.steps}" if isinstance(step, int) else ""
    message = f"the run is not finished: {state}{progress}; continue with --resume"
    return "status", "incomplete", message


def _check_metrics(path: Path, recipe: Recipe, *, done: bool) -> _Result:
    try:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps = [int(event["step"]) for event in events]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return "metrics", "incomplete", f"metrics.jsonl: cannot be read ({error})"
    if not all(itertools.starmap(_is_in_order, itertools.pairwise(events))):
        return "metrics", "incomplete", "metrics.jsonl: steps are not in increasing order"
    if done and (not steps or steps[-1] != recipe.steps):
        return "metrics", "incomplete", f"metrics.jsonl: ends before step {recipe.steps}"
    return "metrics", "passed", f"{len(steps)} lines of metrics"


def _is_in_order(previous: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics may follow another one."""
    # the criterion of a checkpoint has its own line, after the line of its step
    is_selection = "select" in event and event.keys() <= {"step", "stage", "select"}
    return int(event["step"]) >= int(previous["step"]) + (not is_selection)


def _check_checkpoints(folder: Path, recipe: Recipe) -> Iterator[_Result]:
    files, manifests = _step_files(folder, ".pt"), _step_files(folder, ".json")
    intact = []
    for path in files:
        checkpoint = _check_checkpoint(path, folder, recipe)
        if isinstance(checkpoint, Checkpoint):
            intact.append(checkpoint)
        else:
            yield checkpoint
    # a manifest is written after its checkpoint, so a missing checkpoint was lost later
    for path in manifests:
        if not path.with_suffix(".pt").is_file():
            message = f"{path.with_suffix('.pt')}: is missing, but its manifest exists"
            yield "checkpoints", "damaged", message
    if len(intact) == len(files) and files:
        message = f"{len(files)} checkpoints match the digests in their manifests"
        yield "checkpoints", "passed", message
    if not any(checkpoint.step == recipe.steps for checkpoint in intact):
        message = f"no intact checkpoint of the last step, {recipe.steps}"
        yield "checkpoints", "incomplete", message


def _check_checkpoint(path: Path, folder: Path, recipe: Recipe) -> Checkpoint | _Result:
    """Return the checkpoint if it is intact and of this recipe, otherwise what is wrong."""
    if not path.with_suffix(".json").is_file():
        message = f"{path}: has no manifest, so it was not written completely"
        return "checkpoints", "damaged", message
    try:
        checkpoint = load_checkpoint(path)
        recipe_of_checkpoint = from_dict(checkpoint.recipe, origin=str(path))
    except CheckpointError as error:
        return "checkpoints", "damaged", str(error)
    except (RecipeError, EnvironmentFault) as error:
        return "checkpoints", "unreadable", str(error)
    # the number of processes may change, if a step keeps its number of images
    processes = checkpoint.processes
    if (folder / "environment.json").is_file():
        processes = read_num_processes(folder)
    settings = determining_values(recipe_of_checkpoint, checkpoint.processes)
    if settings != determining_values(recipe, processes):
        return "checkpoints", "damaged", f"{path}: was made with another recipe than recipe.yaml"
    return checkpoint


def _check_score(folder: Path, miou: object, recipe: Recipe) -> Iterator[_Result]:
    if recipe.validation.data is None:
        if recipe.expected is not None:
            message = "a score is expected, but the recipe has no validation data"
            yield "score", "incomplete", message
        return
    problems: list[str] = []
    files = find_score_files(folder)
    for path in files.values():
        read_scores(path, problems)
    for problem in problems or ([] if files else ["no scores.json below eval/"]):
        yield "score", "incomplete", problem
    if not isinstance(miou, int | float) or math.isnan(miou):
        yield "score", "incomplete", "status.json: has no final score"
        return
    score = 100 * float(miou)
    if recipe.expected is None:
        yield "score", "passed", f"mIoU {score:.2f}; the recipe has no expected range"
        return
    low, high = recipe.expected.miou
    outcome: Outcome = "passed" if low <= score <= high else "out_of_range"
    yield "score", outcome, f"mIoU {score:.2f}, expected {low:g} to {high:g}"


def _step_files(folder: Path, suffix: str) -> list[Path]:
    """Return the checkpoints or manifests in a run, also those of stages and the best ones."""
    paths = folder.glob(f"**/step-*{suffix}")
    return sorted(path for path in paths if path.stem.removeprefix("step-").isdigit())
