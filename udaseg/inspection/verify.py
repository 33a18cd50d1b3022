"""`udaseg verify`: check that a run is complete, unchanged, and within its expected score."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg.display.console import open_console, safe_text
from udaseg.errors import CheckpointError, DataError, GateError, UdasegError, UsageError
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


@dataclass
class RunCheck:
    """Results of checking one run.

    Attributes:
        folder: Run folder.
        passed: Passed checks, as text.
        damaged: Checkpoints that are not as they were saved.
        missing: What a finished run has and this one lacks.
        out_of_range: Scores outside of the expected range.
    """

    folder: Path
    passed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    out_of_range: list[str] = field(default_factory=list)

    def problems(self) -> list[tuple[type[UdasegError], str]]:
        """Return every problem with the error that it raises, the worst kind first."""
        return [
            *((CheckpointError, line) for line in self.damaged),
            *((DataError, line) for line in self.missing),
            *((GateError, line) for line in self.out_of_range),
        ]


def verify_run(*, run: Path) -> None:
    """Check a run, or all runs of a folder of seeds, and print the results.

    Raises:
        UsageError: The path is not a run.
        RecipeError: A recipe cannot be read.
        CheckpointError: A checkpoint is damaged, or was made with another recipe.
        DataError: The run is not finished, or files are missing.
        GateError: The final score is outside of the range that the recipe expects.
    """
    folders = [run]
    if (run / SUMMARY).is_file():
        folders = [path.parent for path in sorted(run.glob("s*/recipe.yaml"))]
    if not folders or not all((folder / "recipe.yaml").is_file() for folder in folders):
        raise UsageError(f"{run}: is not a run folder (no recipe.yaml)")
    checks = [check_run(folder) for folder in folders]
    console = open_console(soft_wrap=True)
    for check in checks:
        for line in check.passed:
            console.print(safe_text(f"{check.folder}: {line}"))
    _raise_problems(checks)


def _raise_problems(checks: Sequence[RunCheck]) -> None:
    """Raise the problems of all runs together; the worst kind decides the error."""
    problems = [
        (error, f"{check.folder}: {line}") for check in checks for error, line in check.problems()
    ]
    for error in (CheckpointError, DataError, GateError):
        if any(kind is error for kind, _ in problems):
            lines = [line for _, line in problems[:_MAX_PROBLEMS]]
            if len(problems) > _MAX_PROBLEMS:
                lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
            raise error("\n".join(lines))


def check_run(folder: Path) -> RunCheck:
    """Check one run and return the results.

    Raises:
        RecipeError: Its recipe cannot be read.
    """
    check = RunCheck(folder)
    recipe = load(folder / "recipe.yaml")
    check.passed.append(f"recipe {recipe.name}, seed {recipe.seed}, {recipe_digest(recipe)[:12]}")
    _check_files(check, recipe)
    _check_checkpoints(check, recipe)
    _check_score(check, recipe)
    return check


def _check_files(check: RunCheck, recipe: Recipe) -> None:
    folder = check.folder
    check.missing += [f"{name}: is missing" for name in _FILES if not (folder / name).is_file()]
    status = read_json(folder / "status.json")
    state, step = status.get("state"), status.get("step")
    if state != "done" or step != recipe.steps:
        progress = f", step {step} of {recipe.steps}" if isinstance(step, int) else ""
        check.missing.append(f"the run is not finished: {state}{progress}; continue with --resume")
    else:
        check.passed.append(f"finished, {recipe.steps} steps")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        steps = [int(event["step"]) for event in events]
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        check.missing.append(f"metrics.jsonl: cannot be read ({error})")
        return
    if not all(itertools.starmap(_is_in_order, itertools.pairwise(events))):
        check.missing.append("metrics.jsonl: steps are not in increasing order")
    elif state == "done" and (not steps or steps[-1] != recipe.steps):
        check.missing.append(f"metrics.jsonl: ends before step {recipe.steps}")
    else:
        check.passed.append(f"{len(steps)} lines of metrics")


def _is_in_order(previous: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics may follow another one."""
    # the criterion of a checkpoint has its own line, after the line of its step
    is_selection = "select" in event and event.keys() <= {"step", "stage", "select"}
    return int(event["step"]) >= int(previous["step"]) + (not is_selection)


def _check_checkpoints(check: RunCheck, recipe: Recipe) -> None:
    files = sorted(_checkpoint_files(check.folder))
    has_environment = (check.folder / "environment.json").is_file()
    intact: list[Checkpoint] = []
    for path in files:
        if not path.with_suffix(".json").is_file():
            check.damaged.append(f"{path}: has no manifest, so it was not written completely")
            continue
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            check.damaged.append(str(error))
            continue
        # the number of processes may change, if a step keeps its number of images
        checkpoint_settings = determining_values(from_dict(checkpoint.recipe), checkpoint.processes)
        if checkpoint_settings != determining_values(
            recipe, read_num_processes(check.folder) if has_environment else checkpoint.processes
        ):
            check.damaged.append(f"{path}: was made with another recipe than recipe.yaml")
            continue
        intact.append(checkpoint)
    # a manifest is written after its checkpoint, so a missing checkpoint was lost later
    for path in check.folder.glob("**/step-*.json"):
        if path.stem[5:].isdigit() and not path.with_suffix(".pt").is_file():
            check.damaged.append(f"{path.with_suffix('.pt')}: is missing, but its manifest exists")
    if len(intact) == len(files) and files:
        check.passed.append(f"{len(files)} checkpoints match the digests in their manifests")
    if not any(saved.step == recipe.steps for saved in intact):
        check.missing.append(f"no intact checkpoint of the last step, {recipe.steps}")


def _check_score(check: RunCheck, recipe: Recipe) -> None:
    folder = check.folder
    if recipe.validation.data is None:
        if recipe.expected is not None:
            check.missing.append("a score is expected, but the recipe has no validation data")
        return
    problems: list[str] = []
    files = find_score_files(folder)
    for path in files.values():
        read_scores(path, problems)
    check.missing += problems or ([] if files else ["no scores.json below eval/"])
    miou = read_json(folder / "status.json").get("miou")
    if not isinstance(miou, int | float) or math.isnan(miou):
        check.missing.append("status.json: has no final score")
        return
    score = 100 * float(miou)
    if recipe.expected is None:
        check.passed.append(f"mIoU {score:.2f}; the recipe has no expected range")
        return
    low, high = recipe.expected.miou
    message = f"mIoU {score:.2f}, expected {low:g} to {high:g}"
    (check.passed if low <= score <= high else check.out_of_range).append(message)


def _checkpoint_files(folder: Path) -> Iterator[Path]:
    for path in folder.glob("**/step-*.pt"):
        if path.stem[5:].isdigit():
            yield path
