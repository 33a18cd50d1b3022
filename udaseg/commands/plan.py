"""Print the plan of a run before it starts, and its folder when it is done."""

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
    setup: Fit,
    source: PreparedDataset,
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
    folder: Path,
) -> None:
    """Print the plan to stderr: data, network, steps and run folder."""
    assert source.classes is not None
    assert setup.batches.source is not None
    student = setup.objective.student
    parameters = sum(parameter.numel() for parameter in student.parameters())
    rows = {
        "recipe": f"{recipe_path} ({recipe.name}, seed {recipe.seed})",
        "source": f"{source.name}: {len(setup.batches.source.samples)} images, "
        f"{len(source.classes)} classes",
    }
    if target is not None:
        samples = target.split(recipe.target.split)
        rows["target"] = f"{target.name}: {len(samples)} images, labels unused"
        _warn_of_shape("target", recipe.target.resize, samples)
    _warn_of_shape("source", recipe.source.resize, setup.batches.source.samples)
    if setup.device.type == "cpu" and recipe.model.backbone.startswith("resnet"):
        log.warning(
            "%d steps of %s on a CPU take very long; use a GPU. For a quick test: "
            "steps=500 model.backbone=mobilenet_v2 model.output_stride=16",
            recipe.steps,
            recipe.model.backbone,
        )
    if validation is not None:
        split = recipe.validation.split
        rows["scored on"] = f"{validation.name} {split}: {len(validation.split(split))} images"
    rows |= _class_rows(source, setup.batches.source.samples, target, validation)
    model = recipe.model
    rows["network"] = (
        f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"{parameters / 1e6:.2f} M parameters, weights {model.weights}"
    )
    rows["steps"] = f"{recipe.steps} of {recipe.batch.source}"
    if target is not None:
        rows["steps"] += f" + {recipe.batch.target}"
    per_process = f" in each of {world_size()} processes" if world_size() > 1 else ""
    rows["steps"] += f" images{per_process} on {setup.device}, {recipe.machine.precision}"
    if len(legs(recipe)) > 1:
        rows["stages"] = ", ".join(f"{stage.name} to step {stage.end}" for stage in legs(recipe))
    rows["run"] = str(folder)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows.items():
        console.print(Text(f"{key:>10}  {printable(value)}"))


def _warn_of_shape(domain: str, resize: tuple[int, int] | None, samples: Sequence[Sample]) -> None:
    """Warn if the recipe's resize changes the aspect ratio of the images."""
    if resize is None:
        return
    aspect = resize[1] / resize[0]
    distorted = [s for s in samples if not 0.9 < s.width / s.height / aspect < 1.1]
    if distorted:
        first = distorted[0]
        log.warning(
            "%d of %d %s images have another aspect ratio than %s.resize=[%d, %d] (the first "
            "is %dx%d) and are distorted; set %s.resize=[HEIGHT, WIDTH] to keep their aspect ratio",
            len(distorted),
            len(samples),
            domain,
            domain,
            *resize,
            first.width,
            first.height,
            domain,
        )


def _class_rows(
    source: PreparedDataset,
    samples: Sequence[Sample],
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
) -> dict[str, str]:
    """Return which classes both sides share, and which only one side has.

    Args:
        source: Its classes are the network's.
        samples: Training samples; their pixel counts show which classes no label has.
        target: Its class names are compared if nothing is scored; its labels are not read.
        validation: Images to score, if any.

    Raises:
        DataError: No class name is shared, so nothing can be scored.
    """
    assert source.classes is not None
    source_names = source.classes.names
    rows = {}
    counts = [sample.pixels for sample in samples if sample.pixels]
    totals = np.asarray(counts, np.int64).sum(0) if counts else np.ones(len(source_names))
    if untrained := [name for name, total in zip(source_names, totals, strict=True) if not total]:
        rows["unseen"] = (
            f"no training pixels for: {', '.join(untrained)} (no label of {source.name} has them, "
            "so the network cannot learn them)"
        )
    other = validation or target
    other_names = None if other is None or other.classes is None else other.classes.names
    if other is None or other_names is None or set(source_names) == set(other_names):
        return rows
    if validation is not None and not set(source_names) & set(other_names):
        raise DataError(
            f"{other.name}: its classes ({', '.join(other_names)}) have no name in common with "
            f"those of {source.name} ({', '.join(source_names)}), so nothing can be scored; use "
            "the same names in a dataset YAML, or set validation.data=null"
        )
    parts = [f"{len(set(source_names) & set(other_names))} names in common"]
    if exclusive := [name for name in source_names if name not in other_names]:
        parts.append(f"only in {source.name}: {', '.join(exclusive)} (trained, never scored)")
    if exclusive := [name for name in other_names if name not in source_names]:
        parts.append(
            f"only in {other.name}: {', '.join(exclusive)} (the network cannot predict them)"
        )
    return {**rows, "classes": "; ".join(parts)}


def announce(folder: Path, recipe: Recipe) -> None:
    """Print to stdout where the run is, and the commands to use next."""
    console = Console(highlight=False, soft_wrap=True)
    path = shlex.quote(printable(str(folder)))
    console.print(Text(f"{recipe.name}: done, in {path}"))
    if recipe.validation.data is not None:
        console.print(Text(f"  udaseg eval {path}"))
    console.print(Text(f"  udaseg predict IMAGES --checkpoint {path}"))
