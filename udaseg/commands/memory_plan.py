"""Estimate the memory of training for `--dry-run`: one step of each stage, on meta tensors."""

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.data import PreparedDataset
from udaseg.distributed import world_size
from udaseg.engine import Fit, Footprint, footprint
from udaseg.recipe import Leg, Recipe, legs, printable

log = logging.getLogger(__name__)

_WORDS = {
    "student": "student",
    "teacher": "teacher",
    "memories": "banks and prototypes",
    "moments": "optimiser",
    "gradients": "gradients",
    "activations": "activations",
    "guard": "rollback copy",
}


def say_memory(
    recipe: Recipe, first: Fit, source: PreparedDataset, target: PreparedDataset | None
) -> None:
    """Print to stderr how much memory each stage of training needs, and the checkpoint size.

    Args:
        recipe: Recipe of the run.
        first: Its first stage, built.
        source: Labelled images.
        target: Unlabelled images.
    """
    rows: list[tuple[str, str]] = []
    if world_size() > 1:
        rows.append(
            (
                "memory",
                "not estimated with several processes; use --dry-run in one process, with the same "
                "result",
            )
        )
    else:
        for stage, setup in _runs(recipe, first, source, target):
            try:
                memory = footprint(setup)
            except RuntimeError as error:
                # the size of an operation's result depends on its values
                log.warning("memory cannot be estimated: %s", str(error).partition("\n")[0])
                return
            rows.append(("memory", memory_row(memory, stage.name, setup.device)))
        rows.append(
            (
                "",
                "estimated from tensor sizes; excludes kernel workspaces, fragmentation and device "
                "context",
            )
        )
        rows.append(
            ("saved", f"checkpoint size {_size(memory.checkpoint())}; the same in host memory")
        )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows:
        console.print(Text(f"{key:>10}  {printable(value)}"))


def memory_row(memory: Footprint, stage: str | None, device: torch.device) -> str:
    """Return the memory that training needs as text: the sum and its parts."""
    parts = ", ".join(
        f"{label} {_size(getattr(memory, name))}"
        for name, label in _WORDS.items()
        if getattr(memory, name) >= 2**17
    )
    capacity = ""
    if device.type == "cuda":
        capacity = f" of {_size(torch.cuda.get_device_properties(device).total_memory)}"
    prefix = "" if stage is None else f"stage {stage}: "
    return f"{prefix}{_size(memory.total())}{capacity} on {device}: {parts}"


def _runs(
    recipe: Recipe, first: Fit, source: PreparedDataset, target: PreparedDataset | None
) -> Iterator[tuple[Leg, Fit]]:
    """Yield each stage with its training setup; random weights after the first stage."""
    # random weights have the same size
    without_weights = replace(recipe, model=replace(recipe.model, weights="random"))
    for stage in legs(recipe):
        if stage.number == 0:
            yield stage, first
            continue
        labels = None if stage.pseudo_labels is None else Path("pseudo_labels")
        yield stage, build.run(without_weights, source, target, leg=stage, pseudo_labels=labels)
        gc.collect()


def _size(count: int) -> str:
    """Return bytes as GiB, or as MiB below 0.5 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
