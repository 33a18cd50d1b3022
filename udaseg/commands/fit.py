"""`udaseg train` and `udaseg adapt`: from a recipe to a finished run folder."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands import run_folder
from udaseg.commands.legs import Plan, train_to_the_end
from udaseg.commands.plan import announce, say_plan
from udaseg.commands.room import take_over_parts
from udaseg.data import PreparedDataset, open_dataset
from udaseg.engine import Checkpoint, newest
from udaseg.errors import (
    RecipeError,
    UsageError,
)
from udaseg.recipe import Machine, Recipe, adapts, dump, from_dict, load, to_dict
from udaseg.reporting import log_to_file

log = logging.getLogger(__name__)


def train(
    *,
    recipe: Recipe,
    recipe_path: Path,
    out: Path | None,
    root: Path,
    resume: Path | None,
    init: Path | None,
    overwrite: bool,
    dry_run: bool,
    command: Sequence[str],
    fit_memory: bool = False,
) -> Path:
    """Train on the source alone, and return the run folder.

    Raises:
        UsageError: The recipe adapts, or the run folder is taken.
    """
    if recipe.method.kind != "source_only":
        raise UsageError(
            f"{recipe_path}: its method is {recipe.method.kind}; `udaseg adapt` runs it, "
            "`udaseg train` is for source_only"
        )
    return adapt(
        recipe=recipe,
        recipe_path=recipe_path,
        out=out,
        root=root,
        resume=resume,
        init=init,
        overwrite=overwrite,
        dry_run=dry_run,
        command=command,
        fit_memory=fit_memory,
    )


def adapt(
    *,
    recipe: Recipe,
    recipe_path: Path,
    out: Path | None,
    root: Path,
    resume: Path | None,
    init: Path | None,
    overwrite: bool,
    dry_run: bool,
    command: Sequence[str],
    fit_memory: bool = False,
) -> Path:
    """Adapt to the unlabelled target, with `fit_memory` in parts; return the run folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training in several processes is not there yet; start one process")
    if resume is not None and (init is not None or overwrite):
        raise UsageError("--resume continues a run; it takes neither --init nor --overwrite")
    source = open_dataset(recipe.source.data, root=root)
    target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
    validation = _validation(recipe, root)
    start = None if init is None else build.find_checkpoint(init)
    # in a list, so that a later leg can let go of it: two networks need not fit in memory
    current = [build.run(recipe, source, target, init=start)]
    assert source.classes is not None
    folder = resume or run_folder.folder_of(recipe, out)
    say_plan(recipe, recipe_path, current[0], source, target, validation, folder)
    if dry_run:
        Console(soft_wrap=True, highlight=False).print(Text(dump(recipe).rstrip()))
        return folder
    if resume is None:
        run_folder.create(folder, recipe, command, overwrite=overwrite)
    with run_folder.writing(folder), log_to_file(folder / "train.log"):
        checkpoint = None if resume is None else _checkpoint_of(folder, recipe)
        plan = Plan(recipe, source, target, validation, folder, checkpoint, fit_memory)
        train_to_the_end(plan, current)
    announce(folder, recipe)
    return folder


def _validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    if recipe.validation.data is None:
        return None
    dataset = open_dataset(recipe.validation.data, root=root)
    dataset.split(recipe.validation.split)
    return dataset


def _checkpoint_of(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """Return the newest checkpoint of a run to continue; None when there is none yet."""
    before = load(folder / "recipe.yaml")
    _refuse_other_numbers(folder / "recipe.yaml", before, recipe)
    take_over_parts(folder, before, recipe)
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
        return None
    _refuse_other_numbers(checkpoint.path, from_dict(checkpoint.recipe), recipe)
    return checkpoint


def _refuse_other_numbers(where: Path, before: Recipe, now: Recipe) -> None:
    """Refuse to continue with a recipe that differs in anything but the machine."""

    def numbers(recipe: Recipe) -> dict[str, object]:
        # the precision belongs to the machine, but it changes every number
        return to_dict(replace(recipe, machine=Machine(precision=recipe.machine.precision)))

    changed = _differences(numbers(before), numbers(now), "")
    if changed:
        raise RecipeError(
            f"{where}: --resume continues with the same numbers, but "
            + "; ".join(changed)
            + ". Start a new run with --init instead"
        )


def _differences(before: object, now: object, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        found = []
        for key in keys:
            inner = f"{where}.{key}" if where else str(key)
            found += _differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{where} was {before} and is now {now}"]
