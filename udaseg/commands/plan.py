"""What a run says before it starts and after it is done."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg.data import PreparedDataset, Sample
from udaseg.engine import Fit
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
        if difference := _class_difference(source, validation):
            rows["classes"] = difference
    model = recipe.model
    rows["network"] = (
        f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"{parameters / 1e6:.2f} M parameters, weights {model.weights}"
    )
    rows["steps"] = f"{recipe.steps} of {recipe.batch.source}"
    if target is not None:
        rows["steps"] += f" + {recipe.batch.target}"
    rows["steps"] += f" images on {made.device}, {recipe.machine.precision}"
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


def _class_difference(source: PreparedDataset, validation: PreparedDataset) -> str:
    """Return which classes only one side has, or nothing."""
    assert source.classes is not None
    theirs = validation.classes.names if validation.classes is not None else ()
    ours = source.classes.names
    parts = [
        f"only in {name}: {', '.join(only)}"
        for name, only in (
            (source.name, [word for word in ours if word not in theirs]),
            (validation.name, [word for word in theirs if word not in ours]),
        )
        if only
    ]
    return "; ".join(parts)


def announce(folder: Path, recipe: Recipe) -> None:
    """Say on stdout where the run is and what can be done with it."""
    console = Console(highlight=False, soft_wrap=True)
    where = shlex.quote(printable(str(folder)))
    console.print(Text(f"{recipe.name}: done, in {where}"))
    if recipe.validation.data is not None:
        console.print(Text(f"  udaseg eval {where}"))
    console.print(Text(f"  udaseg predict IMAGES --checkpoint {where}"))
