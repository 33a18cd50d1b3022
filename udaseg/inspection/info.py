"""`udaseg info`: show the details of a run or checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from udaseg.display.console import open_console, safe_text
from udaseg.errors import CheckpointError
from udaseg.files import read_json
from udaseg.recipe.load import from_dict, load
from udaseg.recipe.methods import REGULARIZERS
from udaseg.recipe.schema import Domain, Recipe
from udaseg.recipe.stages import stages_of
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.folder import run_folder_of
from udaseg.runs.scores import find_score_files, read_scores
from udaseg.runs.status import read_cost
from udaseg.text import format_duration, percent

_NETWORKS = ("student", "teacher")


def info(*, run: Path, format: str = "table") -> None:  # noqa: A002 (the option's own name)
    """Print the contents of a run folder or a checkpoint.

    Args:
        run: Run folder or checkpoint; for a run, its newest complete checkpoint is shown.
        format: `table` or `json`.

    Raises:
        CheckpointError: There is neither a run nor a readable checkpoint.
    """
    folder = run_folder_of(run)
    try:
        checkpoint: Checkpoint | None = find_checkpoint(run)
    except CheckpointError:
        if not (run / "recipe.yaml").is_file():
            raise
        checkpoint = None  # a run without checkpoints is valid
    if checkpoint is None:
        recipe = load(run / "recipe.yaml")
        rows: dict[str, Any] = {"run": str(run), "checkpoint": "none yet"}
        rows |= _recipe_rows(recipe)
    else:
        recipe = from_dict(checkpoint.recipe)
        rows = {
            "checkpoint": str(checkpoint.path),
            **_file_rows(checkpoint.path),
            "step": f"{checkpoint.step} of {recipe.steps}",
            **_recipe_rows(recipe),
            "weights": _weight_lines(checkpoint),
            "classes": _class_text(checkpoint),
        }
    rows |= _run_rows(folder)
    if format == "json":
        open_console(soft_wrap=True).print(json.dumps(rows, indent=2), markup=False)
        return
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        lines = value if isinstance(value, list) else [value]
        table.add_row(safe_text(key, style="bold"), safe_text("\n".join(lines)))
    open_console().print(table)


def _file_rows(path: Path) -> dict[str, str]:
    """Return size and digest of the file; the digest was verified when the file was read."""
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return {"file": size, "sha256": f"{manifest['sha256']} (verified)"}
    except (OSError, ValueError, LookupError, TypeError):
        return {"file": size, "sha256": "no manifest, so it cannot be verified"}


def _recipe_rows(recipe: Recipe) -> dict[str, str]:
    model, batch = recipe.model, recipe.batch
    rows = {
        "recipe": f"{recipe.name}, seed {recipe.seed}, method {_method_text(recipe)}",
        "source": _domain_text(recipe.source),
        "target": _domain_text(recipe.target),
        "batch": f"{batch.source} source and {batch.target} target images",
        "network": f"{model.backbone}, {model.head}, stride {model.output_stride}, "
        f"initialised from {model.weights} weights",
    }
    if recipe.validation.data is not None:
        rows["scored on"] = f"{recipe.validation.data}, {recipe.validation.split}"
    return rows


def _domain_text(domain: Domain) -> str:
    parts = [domain.data, domain.split]
    if domain.resize is not None:
        parts.append(f"resized to {domain.resize[1]}x{domain.resize[0]}")
    return ", ".join([*parts, f"crops of {domain.crop[1]}x{domain.crop[0]}"])


def _weight_lines(checkpoint: Checkpoint) -> list[str]:
    """Return the number of values in the checkpoint, by owner."""
    sizes: dict[str, int] = {}
    for name, value in checkpoint.objective.items():
        owner, _, parameter_name = name.partition(".")
        if owner == "regularizers":
            owner = f"memory of {parameter_name.partition('.')[0]}"
        sizes[owner] = sizes.get(owner, 0) + value.numel()
    lines = []
    for owner, count in sizes.items():
        size = f"{count / 1e6:.2f} M values"
        if owner in _NETWORKS:
            size += f" (udaseg eval --weights {owner})"
        lines.append(f"{owner}: {size}")
    optimizer_tensors = [
        value
        for state in _optimizer_states(checkpoint.optimizer)
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    count = sum(value.numel() for value in optimizer_tensors)
    lines.append(f"optimiser: {count / 1e6:.2f} M values, so training can be resumed (--resume)")
    return lines


def _optimizer_states(optimizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    state = optimizer.get("state")
    return list(state.values()) if isinstance(state, Mapping) else []


def _class_text(checkpoint: Checkpoint) -> str:
    names = checkpoint.classes["names"]
    return f"{len(names)}: {', '.join(names)}"


def _method_text(recipe: Recipe) -> str:
    """Return what a run minimises: its loss terms, or its stages with their steps."""
    stages = stages_of(recipe)
    if stages[0].name is not None:
        parts = [f"{stage.name} ({stage.objective.kind}) to {stage.end}" for stage in stages]
        return f"{recipe.method.kind}: {', '.join(parts)}"
    terms = [name for name in REGULARIZERS if getattr(recipe.method, name, None) is not None]
    return " + ".join([recipe.method.kind, *terms])


def _run_rows(folder: Path) -> dict[str, Any]:
    """Return facts from the run folder: status, other checkpoints, scores, cost."""
    rows: dict[str, Any] = {}
    if status := _status_text(folder):
        rows["status"] = status
    manifests = sorted(
        (folder / "checkpoints").glob("step-*.json"), key=lambda path: (len(path.stem), path.stem)
    )
    if manifests:
        rows["kept"] = "steps " + ", ".join(str(int(path.stem[5:])) for path in manifests)
    if best := _best_lines(folder):
        rows["best"] = best
    scores = []
    for name, path in find_score_files(folder).items():
        report = read_scores(path, [])
        if report is not None:
            means = ", ".join(f"{key} {percent(mean)}" for key, mean in report.means.items())
            scores.append(
                f"{name}: {means} % ({report.protocol.get('weights', 'unknown weights')})"
            )
    if scores:
        rows["scores"] = scores
    if cost := read_cost(folder):
        rows["cost"] = (
            f"{format_duration(cost['seconds'])} for {cost['step']} steps, at most "
            f"{cost['peak_memory_mib']} MiB of {cost['peak_memory_of']}"
        )
    return rows


def _best_lines(folder: Path) -> list[str]:
    """Return the checkpoints stored by `--keep-best`."""
    lines = []
    for path in sorted((folder / "checkpoints").glob("best-*/step-*.json")):
        record = read_json(path.parent / "best.json")
        steps = record.get("steps")
        entry = steps.get(str(int(path.stem[5:]))) if isinstance(steps, dict) else None
        value = entry.get("value") if isinstance(entry, dict) else None
        value_text = f" {value:.4f}" if isinstance(value, float) else ""
        criterion = path.parent.name.removeprefix("best-")
        lines.append(f"{criterion}{value_text} at step {int(path.stem[5:])}: {path.parent}")
    return lines


def _status_text(folder: Path) -> str:
    path = folder / "status.json"
    if not path.is_file():
        return ""
    document = read_json(path)
    if not document:
        return "unreadable"
    hidden_keys = ("unix_time", "miou")
    return ", ".join(
        f"{key} {value}" if key != "state" else str(value)
        for key, value in document.items()
        if key not in hidden_keys and value not in (None, {})
    )
