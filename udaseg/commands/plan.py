"""What a run says before it starts and after it is done."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from udaseg.data import PreparedDataset, Sample
from udaseg.distributed import world_size
from udaseg.engine import Fit
from udaseg.errors import DataError
from udaseg.recipe import Recipe, legs, printable

log = logging.getLogger(__name__)


def say_plan(
    recipe: Recipe,
    recipe_path: Path,
    made: Fit,
    source: PreparedDataset,
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
    folder: Path,
) -> None:
    """Say on stderr what will happen: data, network, steps, and where it goes."""
    assert source.classes is not None
    assert made.batches.source is not None
    student = made.objective.student
    parameters = sum(part.numel() for part in student.parameters())
    rows = {
        "recipe": f"{recipe_path} ({recipe.name}, seed {recipe.seed})",
        "source": f"{source.name}: {len(made.batches.source.samples)} images, "
        f"{len(source.classes)} classes",
    }
    if target is not None:
        samples = target.split(recipe.target.split)
        rows["target"] = f"{target.name}: {len(samples)} images, labels are not read"
        _warn_of_shape("target", recipe.target.resize, samples)
    _warn_of_shape("source", recipe.source.resize, made.batches.source.samples)
    if made.device.type == "cpu" and recipe.model.backbone.startswith("resnet"):
        log.warning(
            "%d steps of %s on a CPU take very long; a GPU is meant here. To try things out: "
            "steps=500 model.backbone=mobilenet_v2 model.output_stride=16",
            *(recipe.steps, recipe.model.backbone),
        )
    if validation is not None:
        split = recipe.validation.split
        rows["scored on"] = f"{validation.name} {split}: {len(validation.split(split))} images"
    rows |= _class_rows(source, made.batches.source.samples, target, validation)
    model = recipe.model
    rows["network"] = (
        f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"{parameters / 1e6:.2f} M parameters, weights {model.weights}"
    )
    rows["steps"] = f"{recipe.steps} of {recipe.batch.source}"
    if target is not None:
        rows["steps"] += f" + {recipe.batch.target}"
    each = f" in each of {world_size()} processes" if world_size() > 1 else ""
    rows["steps"] += f" images{each} on {made.device}, {recipe.machine.precision}"
    if len(legs(recipe)) > 1:
        rows["stages"] = ", ".join(f"{leg.name} to step {leg.end}" for leg in legs(recipe))
    rows["run"] = str(folder)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows.items():
        console.print(Text(f"{key:>10}  {printable(value)}"))


def _warn_of_shape(domain: str, resize: tuple[int, int] | None, samples: Sequence[Sample]) -> None:
    """Warn when the recipe's resize squashes the images."""
    if resize is None:
        return
    wanted = resize[1] / resize[0]
    squashed = [s for s in samples if not 0.9 < s.width / s.height / wanted < 1.1]
    if squashed:
        first = squashed[0]
        log.warning(
            "%d of %d %s images have another shape than %s.resize=[%d, %d] (the first is %dx%d) "
            "and are squashed; choose %s.resize=[HEIGHT, WIDTH] to keep their shape",
            *(len(squashed), len(samples), domain, domain, *resize, first.width, first.height),
            domain,
        )


def _class_rows(
    source: PreparedDataset,
    samples: Sequence[Sample],
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
) -> dict[str, str]:
    """Return what the class lists have in common and what only one side has.

    Args:
        source: Its classes are the network's.
        samples: What is trained on; its counts say which classes no label holds.
        target: Its class names are compared when nothing is scored; its labels are not read.
        validation: What is scored, if anything.

    Raises:
        DataError: Nothing could be scored, as no name is shared.
    """
    assert source.classes is not None
    ours = source.classes.names
    rows = {}
    counts = [sample.pixels for sample in samples if sample.pixels]
    totals = np.asarray(counts, np.int64).sum(0) if counts else np.ones(len(ours))
    if unseen := [name for name, total in zip(ours, totals, strict=True) if not total]:
        rows["unseen"] = (
            f"no label of {source.name} holds {', '.join(unseen)}: the network has outputs for "
            "them but nothing to learn them from"
        )
    other = validation or target
    theirs = None if other is None or other.classes is None else other.classes.names
    if other is None or theirs is None or set(ours) == set(theirs):
        return rows
    if validation is not None and not set(ours) & set(theirs):
        raise DataError(
            f"{other.name}: its classes ({', '.join(theirs)}) share no name with those of "
            f"{source.name} ({', '.join(ours)}), so nothing could be scored; name them alike in "
            "a dataset YAML, or set validation.data=null"
        )
    parts = [f"{len(set(ours) & set(theirs))} in common, by name"]
    if only := [name for name in ours if name not in theirs]:
        parts.append(f"only in {source.name}: {', '.join(only)} (learnt, never scored)")
    if only := [name for name in theirs if name not in ours]:
        parts.append(f"only in {other.name}: {', '.join(only)} (the network cannot predict them)")
    return {**rows, "classes": "; ".join(parts)}


def announce(folder: Path, recipe: Recipe) -> None:
    """Say on stdout where the run is and what can be done with it."""
    console = Console(highlight=False, soft_wrap=True)
    where = shlex.quote(printable(str(folder)))
    console.print(Text(f"{recipe.name}: done, in {where}"))
    if recipe.validation.data is not None:
        console.print(Text(f"  udaseg eval {where}"))
    console.print(Text(f"  udaseg predict IMAGES --checkpoint {where}"))
