"""`udaseg info`: what a run or checkpoint is, on one screen."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg import build
from udaseg.recipe import Recipe, from_dict, legs


def info(*, run: Path) -> None:
    """Print what a run folder or a checkpoint holds.

    Raises:
        CheckpointError: There is no readable checkpoint.
    """
    checkpoint = build.find_checkpoint(run)
    recipe = from_dict(checkpoint.recipe)
    model, tensors = recipe.model, checkpoint.objective
    student = [value for name, value in tensors.items() if name.startswith("student.")]
    rows = {
        "checkpoint": str(checkpoint.path),
        "step": f"{checkpoint.step} of {recipe.steps}",
        "recipe": f"{recipe.name}, seed {recipe.seed}, method {_method(recipe)}",
        "source": recipe.source.data,
        "target": recipe.target.data,
        "network": f"{model.backbone}, {model.head}, stride {model.output_stride}",
        "parameters": f"{sum(value.numel() for value in student) / 1e6:.2f} M in the student",
        "teacher": "yes" if any(name.startswith("teacher.") for name in tensors) else "no",
        "classes": ", ".join(checkpoint.classes["names"]),
    }
    status = _status(run)
    if status:
        rows["status"] = status
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        table.add_row(Text(key, style="bold"), Text(value))
    Console(highlight=False).print(table)


def _method(recipe: Recipe) -> str:
    """Return what a run minimises, in words: its terms, or its stages with their steps."""
    stretches = legs(recipe)
    if stretches[0].name is not None:
        parts = [f"{leg.name} ({leg.objective.kind}) to {leg.end}" for leg in stretches]
        return f"{recipe.method.kind}: {', '.join(parts)}"
    terms = [
        name
        for name in ("regional", "prototypes", "semantic")
        if getattr(recipe.method, name, None) is not None
    ]
    return " + ".join([recipe.method.kind, *terms])


def _status(run: Path) -> str:
    path = run / "status.json"
    if not path.is_file():
        return ""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return ", ".join(f"{key} {value}" for key, value in document.items())
    except (OSError, ValueError):
        return "unreadable"
