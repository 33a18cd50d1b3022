"""`udaseg verify`: whether a run is whole, unchanged, and as good as its recipe says."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from udaseg.commands.resuming import numbers_with
from udaseg.commands.run_folder import processes_of
from udaseg.commands.run_record import read_scores, score_files
from udaseg.commands.seeds import SUMMARY
from udaseg.engine import Checkpoint, load
from udaseg.errors import CheckpointError, DataError, GateError, UdasegError, UsageError
from udaseg.recipe import Recipe, from_dict, printable, recipe_digest
from udaseg.recipe import load as load_recipe
from udaseg.reporting import read_json

_FILES = ("command.txt", "environment.json", "status.json", "metrics.jsonl", "train.log")
_SHOWN = 10


@dataclass
class Check:
    """What was found of one run.

    Attributes:
        folder: Of the run.
        good: What is as it should be, in words.
        damaged: Checkpoints that are not what was saved.
        missing: What else a finished run has and this one has not.
        outside: A score outside of the expected range.
    """

    folder: Path
    good: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def verify_run(*, run: Path) -> None:
    """Check a run, or all runs of a folder of seeds, and say what is right and what is wrong.

    Raises:
        UsageError: It is no run.
        RecipeError: Its recipe cannot be read.
        CheckpointError: A checkpoint is damaged, or of another recipe.
        DataError: The run is not finished, or files of it are gone.
        GateError: The final score is outside of what the recipe expects.
    """
    folders = [run]
    if (run / SUMMARY).is_file():
        folders = [path.parent for path in sorted(run.glob("s*/recipe.yaml"))]
    if not folders or not all((folder / "recipe.yaml").is_file() for folder in folders):
        raise UsageError(f"{run}: is no run folder (no recipe.yaml)")
    checks = [checked(folder) for folder in folders]
    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        for line in check.good:
            console.print(Text(f"{printable(str(check.folder))}: {printable(line)}"))
    kinds: tuple[tuple[str, type[UdasegError]], ...] = (
        ("damaged", CheckpointError),
        ("missing", DataError),
        ("outside", GateError),
    )
    wrong = [
        f"{c.folder}: {line}" for c in checks for kind, _ in kinds for line in getattr(c, kind)
    ]
    for kind, error in kinds:
        if any(getattr(check, kind) for check in checks):
            more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
            raise error("\n".join([*wrong[:_SHOWN], *more]))


def checked(folder: Path) -> Check:
    """Return what is right and what is wrong with one run.

    Raises:
        RecipeError: Its recipe cannot be read.
    """
    check = Check(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    check.good.append(f"recipe {recipe.name}, seed {recipe.seed}, {recipe_digest(recipe)[:12]}")
    _look_at_files(check, recipe)
    _look_at_checkpoints(check, recipe)
    _look_at_score(check, recipe)
    return check


def _look_at_files(check: Check, recipe: Recipe) -> None:
    folder = check.folder
    check.missing += [f"{name}: is gone" for name in _FILES if not (folder / name).is_file()]
    status = read_json(folder / "status.json")
    state, step = status.get("state"), status.get("step")
    if state != "done" or step != recipe.steps:
        where = f", step {step} of {recipe.steps}" if isinstance(step, int) else ""
        check.missing.append(f"the run is not finished: {state}{where}; go on with --resume")
    else:
        check.good.append(f"finished, {recipe.steps} steps")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        steps = [int(event["step"]) for event in events]
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        check.missing.append(f"metrics.jsonl: cannot be read ({error})")
        return
    if not all(itertools.starmap(_rises, itertools.pairwise(events))):
        check.missing.append("metrics.jsonl: its steps do not rise")
    elif state == "done" and (not steps or steps[-1] != recipe.steps):
        check.missing.append(f"metrics.jsonl: ends before step {recipe.steps}")
    else:
        check.good.append(f"{len(steps)} lines of metrics")


def _rises(before: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics may follow another one."""
    # what a checkpoint is worth has a line of its own, after the one of its step
    beside = "select" in event and event.keys() <= {"step", "stage", "select"}
    return int(event["step"]) >= int(before["step"]) + (not beside)


def _look_at_checkpoints(check: Check, recipe: Recipe) -> None:
    files = sorted(_checkpoint_files(check.folder))
    known = (check.folder / "environment.json").is_file()
    sound: list[Checkpoint] = []
    for path in files:
        if not path.with_suffix(".json").is_file():
            check.damaged.append(f"{path}: has no manifest, so it was never finished")
            continue
        try:
            found = load(path)
        except CheckpointError as error:
            check.damaged.append(str(error))
            continue
        # a run may go on with other processes, as long as a step has as many images
        then = numbers_with(from_dict(found.recipe), found.processes)
        if then != numbers_with(recipe, processes_of(check.folder) if known else found.processes):
            check.damaged.append(f"{path}: was made with another recipe than recipe.yaml")
            continue
        sound.append(found)
    # a manifest is written last, so one without its checkpoint lost it afterwards
    for path in check.folder.glob("**/step-*.json"):
        if path.stem[5:].isdigit() and not path.with_suffix(".pt").is_file():
            check.damaged.append(f"{path.with_suffix('.pt')}: is gone, its manifest is there")
    if len(sound) == len(files) and files:
        check.good.append(f"{len(files)} checkpoints with the digests of their manifests")
    if not any(one.step == recipe.steps for one in sound):
        check.missing.append(f"no sound checkpoint of the last step, {recipe.steps}")


def _look_at_score(check: Check, recipe: Recipe) -> None:
    folder = check.folder
    if recipe.validation.data is None:
        if recipe.expected is not None:
            check.missing.append("a score is expected, but the recipe has no validation data")
        return
    troubles: list[str] = []
    files = score_files(folder)
    for path in files.values():
        read_scores(path, troubles)
    check.missing += troubles or ([] if files else ["no scores.json below eval/"])
    miou = read_json(folder / "status.json").get("miou")
    if not isinstance(miou, int | float) or math.isnan(miou):
        check.missing.append("status.json: has no final score")
        return
    score = 100 * float(miou)
    if recipe.expected is None:
        check.good.append(f"mIoU {score:.2f}; the recipe expects no range")
        return
    low, high = recipe.expected.miou
    told = f"mIoU {score:.2f}, expected {low:g} to {high:g}"
    (check.good if low <= score <= high else check.outside).append(told)


def _checkpoint_files(folder: Path) -> Iterator[Path]:
    for path in folder.glob("**/step-*.pt"):
        if path.stem[5:].isdigit():
            yield path
