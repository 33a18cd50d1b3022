"""What a user can do when a step does not fit in memory, and what `--fit` does about it."""

import logging
import math
from dataclasses import replace
from pathlib import Path

from udaseg.commands.run_folder import rewrite_recipe
from udaseg.engine import Fit, free
from udaseg.errors import EnvironmentFault
from udaseg.recipe import Recipe

log = logging.getLogger(__name__)


def in_smaller_parts(
    recipe: Recipe, made: Fit, folder: Path, told: str, *, wanted: bool
) -> tuple[Recipe, Fit]:
    """Return recipe and run with each step in more parts; the run's `recipe.yaml` says so too.

    Args:
        recipe: Of the run.
        made: What does not fit.
        folder: Of the run.
        told: What the device said.
        wanted: `--fit` was given.

    Raises:
        EnvironmentFault: It was not, or a part is down to what cannot be divided; with advice.
    """
    parts = _next_parts(recipe, made)
    if not wanted or parts is None:
        raise EnvironmentFault(advice(recipe, made, told, fit_given=wanted))
    free()
    log.warning(
        "a step of %d + %d images does not fit in memory (%s); trying it in %d parts of %d + %d. "
        "Batch norm sees one part at a time, so the numbers are others than without --fit",
        *(recipe.batch.source, recipe.batch.target, told, parts),
        *(recipe.batch.source // parts, recipe.batch.target // parts),
    )
    recipe = replace(recipe, machine=replace(recipe.machine, micro_batches=parts))
    rewrite_recipe(folder, recipe)
    return recipe, replace(made, micro_batches=parts)


def take_over_parts(folder: Path, before: Recipe, now: Recipe) -> None:
    """Let a resumed run go on with another number of parts, and say what that means."""
    if before.machine.activation_checkpointing != now.machine.activation_checkpointing:
        rewrite_recipe(folder, now)  # the same numbers, so there is nothing to say
    old, new = before.machine.micro_batches, now.machine.micro_batches
    if old != new:
        # not refused, or a run that ran out of memory could never go on
        log.warning("a step is now made in %d parts, before in %d: the numbers differ", new, old)
        rewrite_recipe(folder, now)


def advice(recipe: Recipe, made: Fit, told: str, *, fit_given: bool) -> str:
    """Return what does not fit, in figures, and what to change."""
    batch, batches = recipe.batch, made.batches
    crop = recipe.source.crop
    # of the stage at hand, whose crops and batch may be its own
    seen = [
        f"{count // recipe.machine.micro_batches} {domain} images of {of.crop[1]}x{of.crop[0]} px"
        for domain, count, of in (
            ("source", batches.batch_source, batches.source),
            ("target", batches.batch_target, batches.target),
        )
        if of is not None
    ]
    ways = []
    machine = recipe.machine
    if not machine.activation_checkpointing and not machine.compile:
        ways.append("machine.activation_checkpointing=true (the same numbers, a little slower)")
    if not fit_given and (parts := _next_parts(recipe, made)) is not None:
        ways.append(f"--fit (the same batch in {parts} or more parts)")
    if batch.source > 1:
        ways.append(f"--batch {batch.source // 2}")
    stride = recipe.model.output_stride
    # half the pixels, in whole cells
    smaller = [max(stride, round(side / math.sqrt(2) / stride) * stride) for side in crop]
    ways.append(f"source.crop={smaller} target.crop={smaller} (half the pixels)")
    if made.device.type == "cuda" and recipe.machine.precision == "fp32":
        ways.append("--precision bf16")
    return (
        f"out of memory on {made.device}: {' and '.join(seen)} at once ({told}); take "
        + ", or ".join(ways)
    )


def _next_parts(recipe: Recipe, made: Fit) -> int | None:
    """Return the next larger number of equal parts of every batch, or None."""
    sizes = [recipe.batch.source, recipe.batch.target]
    if made.batches.target is not None:
        sizes.append(made.batches.batch_target)
    most = math.gcd(*sizes)
    larger = range(recipe.machine.micro_batches + 1, most + 1)
    return next((parts for parts in larger if most % parts == 0), None)
