"""What `--dry-run` says of memory: a whole step of each stage, on tensors without storage."""

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
    "guard": "undo of a bad step",
}


def say_memory(
    recipe: Recipe, first: Fit, source: PreparedDataset, target: PreparedDataset | None
) -> None:
    """Say on stderr what training will hold, stage by stage, and what a checkpoint takes.

    Args:
        recipe: Of the run.
        first: Its first stage, built.
        source: Labelled images.
        target: Unlabelled images.
    """
    rows: list[tuple[str, str]] = []
    if world_size() > 1:
        rows.append(("memory", "is not reckoned in several processes; ask in one, it is the same"))
    else:
        for leg, run in _runs(recipe, first, source, target):
            try:
                needs = footprint(run)
            except RuntimeError as error:
                # an operation whose result has a size that only its values tell
                log.warning("memory cannot be reckoned: %s", str(error).partition("\n")[0])
                return
            rows.append(("memory", memory_row(needs, leg.name, run.device)))
        rows.append(
            (
                "",
                "reckoned from the sizes of all that a step makes, none was run; workspaces of "
                "kernels, gaps and the device's own come on top",
            )
        )
        rows.append(
            ("saved", f"{_size(needs.checkpoint())} a checkpoint; as much again in host memory")
        )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows:
        console.print(Text(f"{key:>10}  {printable(value)}"))


def memory_row(needs: Footprint, stage: str | None, device: torch.device) -> str:
    """Return what training needs in words: the sum and its parts."""
    parts = ", ".join(
        f"{word} {_size(getattr(needs, name))}"
        for name, word in _WORDS.items()
        if getattr(needs, name) >= 2**17
    )
    there = ""
    if device.type == "cuda":
        there = f" of {_size(torch.cuda.get_device_properties(device).total_memory)}"
    named = "" if stage is None else f"stage {stage}: "
    return f"{named}{_size(needs.total())}{there} on {device}: {parts}"


def _runs(
    recipe: Recipe, first: Fit, source: PreparedDataset, target: PreparedDataset | None
) -> Iterator[tuple[Leg, Fit]]:
    """Yield the legs with what they train with; after the first with weights that are made up."""
    # whatever they are, weights are of the same size
    hollow = replace(recipe, model=replace(recipe.model, weights="random"))
    for leg in legs(recipe):
        if leg.number == 0:
            yield leg, first
            continue
        labels = None if leg.pseudo_labels is None else Path("pseudo_labels")
        yield leg, build.run(hollow, source, target, leg=leg, pseudo_labels=labels)
        gc.collect()


def _size(count: int) -> str:
    """Return bytes in GiB, or in MiB where that says more."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
