"""Check that a run is complete, unchanged, and within its expected score."""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from udaseg import errors
from udaseg.recipe.load import from_dict, load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import determining_values, recipe_digest
from udaseg.runs.checkpoint import load_checkpoint
from udaseg.runs.folder import read_num_processes
from udaseg.runs.groups import refuse_without_runs, run_groups
from udaseg.runs.records import parse_event, read_status
from udaseg.runs.scores import read_evaluations
from udaseg.text import count_text

_FILES = ("command.txt", "environment.json", "status.json", "metrics.jsonl", "train.log")
_MAX_PROBLEMS = 10

Outcome = Literal["passed", "unreadable", "damaged", "incomplete", "out_of_range"]
# the worst outcome first
_ERRORS: dict[Outcome, type[errors.UdasegError]] = {
    "unreadable": errors.RecipeError,
    "damaged": errors.CheckpointError,
    "incomplete": errors.DataError,
    "out_of_range": errors.GateError,
}
_KINDS = list(_ERRORS)


@dataclass(frozen=True)
class Check:
    """The result of one check of a run.

    Attributes:
        name: What was checked: `recipe`, `files`, `status`, `metrics`, `checkpoints` or `score`.
        outcome: `passed`, or how it failed: `unreadable` (the recipe cannot be loaded), `damaged`
            (a checkpoint is not as it was saved), `incomplete` (something of a finished run is
            missing) or `out_of_range` (the score is outside of the expected range).
    """

    run: Path
    name: str
    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Verification:
    """The results of all checks of a run, or of each run in a folder of seeds, in their order."""

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
    """Check a run, or all runs in a folder of seeds or of a sweep.

    Args:
        run: Run folder, or the folder of several seeds or of a sweep.

    Returns:
        The result of each check. A check that fails raises nothing; `raise_if_failed` does.

    Raises:
        CheckpointError: The path is not a run.

    Example:
        verification = udaseg.verify("runs/city-rccr")
        verification.ok, [check.message for check in verification.failed]
    """
    path = Path(run)
    refuse_without_runs(path)
    folders = [folder for group in run_groups(path) for folder in group.runs]
    return Verification(tuple(itertools.chain.from_iterable(map(_check_run, folders))))


_Results = Iterator[tuple[Outcome, str]]


def _check_run(folder: Path) -> Iterator[Check]:
    """Yield the results of all checks of a run; without a recipe there is nothing to compare."""
    try:
        recipe = load(folder / "recipe.yaml", stored=True)
    except (errors.RecipeError, errors.EnvironmentFault) as error:
        yield Check(folder, "recipe", "unreadable", str(error))
        return
    digest = recipe_digest(recipe)[:12]
    message = f"recipe {recipe.name}, seed {recipe.seed}, {digest}"
    yield Check(folder, "recipe", "passed", message)
    status = read_status(folder)
    checks = {
        "files": _check_files(folder),
        "status": _check_status(status, recipe),
        "metrics": _check_metrics(folder, recipe, done=status.get("state") == "done"),
        "checkpoints": _check_checkpoints(folder, recipe),
        "score": _check_score(folder, status.get("miou"), recipe),
    }
    for name, results in checks.items():
        for outcome, message in results:
            yield Check(folder, name, outcome, message)


def _check_files(folder: Path) -> _Results:
    for name in _FILES:
        if not (folder / name).is_file():
            hint = "; --resume writes it again" if name in _FILES[:2] else ""
            yield "incomplete", f"{name}: is missing{hint}"


def _check_status(status: Mapping[str, Any], recipe: Recipe) -> _Results:
    state, step = status.get("state"), status.get("step")
    if state == "done" and step == recipe.steps:
        yield "passed", f"finished, {count_text(recipe.steps, 'step')}"
        return
    progress = f", step {step} of {recipe.steps}" if isinstance(step, int) else ""
    yield "incomplete", f"the run is not finished: {state}{progress}; continue with --resume"


def _check_metrics(folder: Path, recipe: Recipe, *, done: bool) -> _Results:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    try:
        events = [parse_event(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        yield "incomplete", f"metrics.jsonl: cannot be read ({error})"
        return
    if not all(itertools.starmap(_is_in_order, itertools.pairwise(events))):
        yield "incomplete", "metrics.jsonl: steps are not in increasing order"
    elif done and (not events or events[-1]["step"] != recipe.steps):
        yield "incomplete", f"metrics.jsonl: ends before step {recipe.steps}"
    else:
        yield "passed", f"{count_text(len(events), 'line')} of metrics"


def _is_in_order(previous: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    # the criterion of a checkpoint has its own line, after the line of its step
    is_selection = "select" in event and event.keys() <= {"step", "stage", "select"}
    return bool(event["step"] >= previous["step"] + (not is_selection))


def _check_checkpoints(folder: Path, recipe: Recipe) -> _Results:
    files, intact_steps = _step_files(folder, ".pt"), []
    for path in files:
        try:
            intact_steps.append(_check_checkpoint(path, folder, recipe))
        except errors.CheckpointError as error:
            yield "damaged", str(error)
        except (errors.RecipeError, errors.EnvironmentFault) as error:
            yield "unreadable", str(error)
    # a manifest is written after its checkpoint, so a missing checkpoint was lost later
    for path in _step_files(folder, ".json"):
        if not path.with_suffix(".pt").is_file():
            yield "damaged", f"{path.with_suffix('.pt')}: is missing, but its manifest exists"
    if files and len(intact_steps) == len(files):
        yield "passed", f"the digests of {count_text(len(files), 'checkpoint')} match"
    if recipe.steps not in intact_steps:
        yield "incomplete", f"no intact checkpoint of the last step, {recipe.steps}"


def _check_checkpoint(path: Path, folder: Path, recipe: Recipe) -> int:
    """Return the step of a checkpoint; raise an error if it is damaged or of another recipe."""
    if not path.with_suffix(".json").is_file():
        raise errors.CheckpointError(f"{path}: has no manifest, so it was not written completely")
    checkpoint = load_checkpoint(path)
    recipe_of_checkpoint = from_dict(checkpoint.recipe, origin=str(path))
    # the number of processes may change, if a step keeps its number of images
    processes = read_num_processes(folder) or checkpoint.processes
    settings = determining_values(recipe_of_checkpoint, checkpoint.processes)
    if settings != determining_values(recipe, processes):
        raise errors.CheckpointError(f"{path}: was made with another recipe than recipe.yaml")
    return checkpoint.step


def _check_score(folder: Path, miou: object, recipe: Recipe) -> _Results:
    if recipe.validation.data is None:
        if recipe.expected is not None:
            yield "incomplete", "a score is expected, but the recipe has no validation data"
        return
    problems: list[str] = []
    if not read_evaluations(folder, problems) and not problems:
        problems = ["no scores.json below eval/"]
    for problem in problems:
        yield "incomplete", problem
    if not isinstance(miou, int | float):
        yield "incomplete", "status.json: has no final score"
        return
    score = 100 * float(miou)
    if recipe.expected is None:
        yield "passed", f"mIoU {score:.2f}; the recipe has no expected range"
        return
    low, high = recipe.expected.miou
    outcome: Outcome = "passed" if low <= score <= high else "out_of_range"
    yield outcome, f"mIoU {score:.2f}, expected {low:g} to {high:g}"


def _step_files(folder: Path, suffix: str) -> list[Path]:
    """Return the checkpoints or manifests in a run, also those of stages and the best ones."""
    paths = folder.glob(f"**/step-*{suffix}")
    return sorted(path for path in paths if path.stem.removeprefix("step-").isdigit())
