"""Folders of several runs: of the seeds of a recipe, and of the settings of a sweep."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from udaseg.errors import CheckpointError, UsageError
from udaseg.files import read_json
from udaseg.recipe.load import load
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import changed_settings, numeric_settings, recipe_digest
from udaseg.runs.folder import START_FILE, refuse_existing_run, refuse_file
from udaseg.runs.manifests import digest_of_newest, refuse_missing_run, runs_in
from udaseg.runs.records import Start, read_status
from udaseg.text import shortened

SEEDS_FILE = "seeds.json"
SWEEP_FILE = "sweep.json"


class Setting(TypedDict, total=False):
    """A setting in `sweep.json`; more keys describe it for people."""

    name: Required[str]
    folder: Required[str]


class SweepRecord(TypedDict):
    """`sweep.json`: the settings in the order of the table."""

    settings: list[Setting]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seeds.

    Attributes:
        name: Name of the setting in its sweep; None without a sweep.
        folder: The folder of the runs, or the run itself.
        runs: The run folders, by seed.
    """

    name: str | None
    folder: Path
    runs: tuple[Path, ...]


def run_groups(path: Path) -> list[RunGroup]:
    """Return the runs of a run folder, of a folder of seeds, or of each setting of a sweep.

    Settings without a run are left out; so is everything that is no run.
    """
    settings: list[dict[str, Any]] = read_json(path / SWEEP_FILE, SweepRecord).get("settings", [])
    if settings:
        groups = [_seeds(path / each["folder"], each["name"]) for each in settings]
        return [group for group in groups if group.runs]
    if (path / SEEDS_FILE).is_file():
        return [_seeds(path, None)]
    return [RunGroup(None, path, (path,) if (path / "recipe.yaml").is_file() else ())]


def refuse_without_runs(path: Path) -> None:
    """Refuse a path without runs.

    Raises:
        CheckpointError: It is neither a run folder, nor one of seeds or of a sweep.
    """
    refuse_missing_run(path)
    if not any(group.runs for group in run_groups(path)):
        raise CheckpointError(
            f"{path}: is not a run folder, nor one of seeds or of a sweep{runs_in(path)}"
        )


def refuse_other_folder(folder: Path, record: str) -> None:
    """Refuse a folder for several runs that holds other files than theirs.

    Args:
        folder: The folder.
        record: `SEEDS_FILE` or `SWEEP_FILE`, which the folder of the runs gets.

    Raises:
        UsageError: It holds other files, or is one.
    """
    refuse_file(folder)
    names = sorted(path.name for path in folder.glob("*"))
    if record in names:
        return
    if {"recipe.yaml", SEEDS_FILE, SWEEP_FILE}.intersection(names):
        raise UsageError(f"{folder}: holds a run, or several of another kind; use another --out")
    others = [name for name in names if not re.fullmatch("s[0-9]+", name)]
    if others:
        raise UsageError(
            f"{folder}: holds other files, such as {shortened(others[0])}, so nothing in it is "
            "touched; choose another --out"
        )


def seed_folder(folder: Path, seed: int) -> Path:
    """Return the run folder of a seed, in the folder of several."""
    return folder / f"s{seed}"


def refuse_other_runs(
    folder: Path,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    init: str | os.PathLike[str] | None,
    overwrite: bool,
) -> None:
    """Refuse a folder of seeds with a run of other settings or other weights, or other files.

    Args:
        folder: The folder of all seeds.
        recipe: The recipe, with any seed.
        seeds: The seeds.
        init: The checkpoint to start from, if any.
        overwrite: Whether runs may be replaced.

    Raises:
        UsageError: There is such a run, or the folder of a seed holds other files.
        CheckpointError: There is no checkpoint to start from.
    """
    start = None if init is None else digest_of_newest(Path(init))
    for seed in seeds:
        run = seed_folder(folder, seed)
        if overwrite or not (run / "recipe.yaml").is_file():
            refuse_existing_run(run, overwrite=overwrite)
            continue
        before, now = load(run / "recipe.yaml", stored=True), replace(recipe, seed=seed)
        if recipe_digest(before) != recipe_digest(now):
            state = "finished" if read_status(run).get("state") == "done" else "begun"
            changed = changed_settings(numeric_settings(before), numeric_settings(now))
            raise UsageError(
                f"{run}: is {state}, but with other settings: {'; '.join(changed)}. Use "
                "another --out, or --overwrite to train all seeds again"
            )
        begun = read_json(run / START_FILE, Start)
        if begun.get("sha256") != start:
            path = begun.get("checkpoint")
            raise UsageError(
                f"{run}: was begun {'without --init' if path is None else f'from {path}'}, "
                "not from this --init; use the same one, another --out, or --overwrite to train "
                "all seeds again"
            )


def _seeds(folder: Path, name: str | None) -> RunGroup:
    runs = [recipe.parent for recipe in folder.glob("s*/recipe.yaml")]
    by_seed = sorted(runs, key=lambda run: (len(run.name), run.name))
    return RunGroup(name, folder, tuple(by_seed))
