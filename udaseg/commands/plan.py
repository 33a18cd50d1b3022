"""What a run says before it starts and after it is done."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg.data import PreparedDataset, Sample
from udaseg.engine import Fit
from udaseg.recipe import Recipe, printable

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
    student = made.objective.student
    parameters = sum(part.numel() for part in student.parameters())
    rows = {
        "recipe": f"{recipe_path} ({recipe.name}, seed {recipe.seed})",
        "source": f"{source.name}: {len(made.batches.source.samples)} images, "
        f"{len(source.classes)} classes",
    }
    if target is not None and made.batches.target is not None:
        count = len(made.batches.target.samples)
        rows["target"] = f"{target.name}: {count} images, labels are not read"
        _warn_of_shape(recipe, made.batches.target.samples)
    if validation is not None:
        split = recipe.validation.split
        rows["scored on"] = f"{validation.name} {split}: {len(validation.split(split))} images"
    model = recipe.model
    rows["network"] = (
        f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"{parameters / 1e6:.2f} M parameters, weights {model.weights}"
    )
    rows["steps"] = f"{recipe.steps} of {recipe.batch.source}"
    if target is not None:
        rows["steps"] += f" + {recipe.batch.target}"
    rows["steps"] += f" images on {made.device}, {recipe.machine.precision}"
    rows["run"] = str(folder)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for key, value in rows.items():
        console.print(Text(f"{key:>10}  {printable(value)}"))


def _warn_of_shape(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Warn when the recipe's resize squashes the target's images."""
    resize = recipe.target.resize
    if resize is None:
        return
    wanted = resize[1] / resize[0]
    squashed = [s for s in samples if not 0.9 < s.width / s.height / wanted < 1.1]
    if squashed:
        first = squashed[0]
        log.warning(
            "%d of %d target images have another shape than target.resize=[%d, %d] (the first is "
            "%dx%d) and are squashed; choose target.resize=[HEIGHT, WIDTH] to keep their shape",
            *(len(squashed), len(samples), *resize, first.width, first.height),
        )


def announce(folder: Path, recipe: Recipe) -> None:
    """Say on stdout where the run is and what can be done with it."""
    console = Console(highlight=False, soft_wrap=True)
    where = printable(str(folder))
    console.print(Text(f"{recipe.name}: done, in {where}"))
    console.print(Text(f"  udaseg eval {where}\n  udaseg predict IMAGES --checkpoint {where}"))
