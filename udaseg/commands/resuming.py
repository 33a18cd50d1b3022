"""Resume a run: find its newest checkpoint, and refuse a recipe that changes the results."""

import logging
from dataclasses import replace
from pathlib import Path

from udaseg.commands import run_folder
from udaseg.commands.room import take_over_parts
from udaseg.distributed import gathered, rank, world_size
from udaseg.engine import Checkpoint, manifests, newest
from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError
from udaseg.recipe import BatchSize, Recipe, Staged, from_dict, load, numbers_of

log = logging.getLogger(__name__)


def checkpoint_of(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """Return the newest checkpoint of a run to resume; None if there is none yet.

    Raises:
        RecipeError: A setting that changes the results, or the batch size over all processes,
            differs.
        EnvironmentFault: The processes do not see the same folder.
        CheckpointError: There are checkpoints, but all of them are damaged.
    """
    before, processes = load(folder / "recipe.yaml"), run_folder.processes_of(folder)
    _refuse_other_numbers(folder / "recipe.yaml", (before, processes), recipe)
    checkpoint = newest(folder / "checkpoints")
    steps = gathered(None if checkpoint is None else checkpoint.step)
    if len(set(steps)) > 1:
        raise EnvironmentFault(
            f"{folder}: the processes see checkpoints of different steps, {steps}; put the run "
            "folder on a file system that all hosts share"
        )
    if checkpoint is None and (unreadable := manifests(folder / "checkpoints")):
        names = ", ".join(path.with_suffix(".pt").name for path in unreadable)
        raise CheckpointError(
            f"{folder / 'checkpoints'}: none of the checkpoints can be read ({names}); replace "
            "them by intact copies, or remove the folder to train again from step 0 with --resume"
        )
    if checkpoint is not None:
        stored_recipe = from_dict(checkpoint.recipe)
        _refuse_other_numbers(checkpoint.path, (stored_recipe, checkpoint.processes), recipe)
    if rank() == 0:
        take_over_parts(folder, before, recipe)
        if processes != world_size():
            log.warning(
                "the run continues with %d processes instead of %d: each step uses the same "
                "images, but the results differ by rounding",
                world_size(),
                processes,
            )
            run_folder.rewrite_recipe(folder, recipe)
            run_folder.rewrite_environment(folder)
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
    return checkpoint


def _refuse_other_numbers(path: Path, before: tuple[Recipe, int], now: Recipe) -> None:
    """Refuse to resume with a recipe that differs in more than `machine`.

    Args:
        path: File that holds the previous recipe.
        before: The previous recipe and number of processes.
        now: The recipe of this call.
    """
    processes = before[1]
    changed = _differences(numbers_with(*before), numbers_with(now, world_size()), "")
    if not changed:
        return
    text = f"{path}: --resume needs the same settings, but " + "; ".join(changed)
    if processes != world_size():
        raise RecipeError(
            f"{text}, counting the images of all processes ({processes} before, {world_size()} "
            f"now). Start {processes} processes again, or set batch.source and batch.target so "
            "that a step has as many images as before"
        )
    raise RecipeError(f"{text}. Start a new run with --init instead")


def numbers_with(recipe: Recipe, processes: int) -> dict[str, object]:
    """Return the settings that change a run's results, with batch sizes over all processes."""
    batch = BatchSize(recipe.batch.source * processes, recipe.batch.target * processes)
    method = recipe.method
    if isinstance(method, Staged):
        stages = tuple(
            stage
            if (stage_target := stage.target) is None
            else replace(stage, target=replace(stage_target, batch=stage_target.batch * processes))
            for stage in method.stages
        )
        method = replace(method, stages=stages)
    return numbers_of(replace(recipe, batch=batch, method=method))


def _differences(before: object, now: object, prefix: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        differences = []
        for key in keys:
            full_key = f"{prefix}.{key}" if prefix else str(key)
            differences += _differences(before.get(key), now.get(key), full_key)
        return differences
    return [] if before == now else [f"{prefix} was {before} and is now {now}"]
