"""Going on with a run: its newest checkpoint, and what must be as it was before."""

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
    """Return the newest checkpoint of a run to continue; None when there is none yet.

    Raises:
        RecipeError: The numbers are others than before, or a step has another number of images.
        EnvironmentFault: The processes do not see the same folder.
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    before, processes = load(folder / "recipe.yaml"), run_folder.processes_of(folder)
    _refuse_other_numbers(folder / "recipe.yaml", (before, processes), recipe)
    checkpoint = newest(folder / "checkpoints")
    steps = gathered(None if checkpoint is None else checkpoint.step)
    if len(set(steps)) > 1:
        raise EnvironmentFault(
            f"{folder}: the processes find checkpoints of the steps {steps}; put the run folder "
            "on a file system that all hosts share"
        )
    if checkpoint is None and (damaged := manifests(folder / "checkpoints")):
        named = ", ".join(path.with_suffix(".pt").name for path in damaged)
        raise CheckpointError(
            f"{folder / 'checkpoints'}: none of the checkpoints can be read ({named}); put whole "
            "copies in their place, or remove the folder to train again from step 0 with --resume"
        )
    if checkpoint is not None:
        then = from_dict(checkpoint.recipe)
        _refuse_other_numbers(checkpoint.path, (then, checkpoint.processes), recipe)
    if rank() == 0:
        take_over_parts(folder, before, recipe)
        if processes != world_size():
            log.warning(
                "the run goes on with %d processes, before with %d: the same images in each step, "
                "but the numbers differ by rounding",
                *(world_size(), processes),
            )
            run_folder.rewrite_recipe(folder, recipe)
            run_folder.rewrite_environment(folder)
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
    return checkpoint


def _refuse_other_numbers(where: Path, before: tuple[Recipe, int], now: Recipe) -> None:
    """Refuse to continue with a recipe that differs in anything but the machine.

    Args:
        where: What says how it was.
        before: The recipe and the number of processes then.
        now: The recipe now.
    """
    processes = before[1]
    changed = _differences(numbers_with(*before), numbers_with(now, world_size()), "")
    if not changed:
        return
    text = f"{where}: --resume continues with the same numbers, but " + "; ".join(changed)
    if processes != world_size():
        raise RecipeError(
            f"{text}, counting the images of all processes ({processes} before, {world_size()} "
            f"now). Start {processes} processes again, or set batch.source and batch.target so "
            "that a step has as many images as before"
        )
    raise RecipeError(f"{text}. Start a new run with --init instead")


def numbers_with(recipe: Recipe, processes: int) -> dict[str, object]:
    """Return what changes the numbers of a run, with the images of all processes."""
    batch = BatchSize(recipe.batch.source * processes, recipe.batch.target * processes)
    method = recipe.method
    if isinstance(method, Staged):
        stages = tuple(
            stage
            if (own := stage.target) is None
            else replace(stage, target=replace(own, batch=own.batch * processes))
            for stage in method.stages
        )
        method = replace(method, stages=stages)
    return numbers_of(replace(recipe, batch=batch, method=method))


def _differences(before: object, now: object, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        found = []
        for key in keys:
            inner = f"{where}.{key}" if where else str(key)
            found += _differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{where} was {before} and is now {now}"]
