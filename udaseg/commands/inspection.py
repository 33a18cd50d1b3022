"""`udaseg info`: what a run or checkpoint is, on one screen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from udaseg import build
from udaseg.commands.cost import read_cost
from udaseg.commands.run_folder import run_of
from udaseg.commands.run_record import duration, read_scores, score_files
from udaseg.engine import Checkpoint
from udaseg.errors import CheckpointError
from udaseg.recipe import Domain, Recipe, from_dict, legs, load, printable
from udaseg.reporting import percent, read_json

_NETWORKS = ("student", "teacher")


def info(*, run: Path, format: str = "table") -> None:  # noqa: A002 (the option's own name)
    """Print what a run folder or a checkpoint holds.

    Args:
        run: Either; of a run the newest whole checkpoint is looked into.
        format: `table`, or `json` with the same.

    Raises:
        CheckpointError: There is neither a run nor a readable checkpoint.
    """
    folder = run_of(run)
    try:
        checkpoint: Checkpoint | None = build.find_checkpoint(run)
    except CheckpointError:
        if not (run / "recipe.yaml").is_file():
            raise
        checkpoint = None  # a run that has not saved yet is a run
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
            "weights": _weights(checkpoint),
            "classes": _classes(checkpoint),
        }
    rows |= _run_rows(folder)
    if format == "json":
        Console(highlight=False, soft_wrap=True).print(json.dumps(rows, indent=2), markup=False)
        return
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        lines = value if isinstance(value, list) else [value]
        table.add_row(Text(key, style="bold"), Text("\n".join(map(printable, lines))))
    Console(highlight=False).print(table)


def _file_rows(path: Path) -> dict[str, str]:
    """Return size and digest; the digest was compared with the file when it was read."""
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return {"file": size, "sha256": f"{manifest['sha256']} (verified)"}
    except (OSError, ValueError, LookupError, TypeError):
        return {"file": size, "sha256": "no manifest, so it cannot be verified"}


def _recipe_rows(recipe: Recipe) -> dict[str, str]:
    model, batch = recipe.model, recipe.batch
    rows = {
        "recipe": f"{recipe.name}, seed {recipe.seed}, method {_method(recipe)}",
        "source": _domain(recipe.source),
        "target": _domain(recipe.target),
        "batch": f"{batch.source} source and {batch.target} target images",
        "network": f"{model.backbone}, {model.head}, stride {model.output_stride}, began from "
        f"{model.weights} weights",
    }
    if recipe.validation.data is not None:
        rows["scored on"] = f"{recipe.validation.data}, {recipe.validation.split}"
    return rows


def _domain(domain: Domain) -> str:
    parts = [domain.data, domain.split]
    if domain.resize is not None:
        parts.append(f"resized to {domain.resize[1]}x{domain.resize[0]}")
    return ", ".join([*parts, f"crops of {domain.crop[1]}x{domain.crop[0]}"])


def _weights(checkpoint: Checkpoint) -> list[str]:
    """Return what tensors are inside, by what they belong to."""
    sizes: dict[str, int] = {}
    for name, value in checkpoint.objective.items():
        owner, _, rest = name.partition(".")
        if owner == "regularizers":
            owner = f"memory of {rest.partition('.')[0]}"
        sizes[owner] = sizes.get(owner, 0) + value.numel()
    lines = []
    for owner, count in sizes.items():
        what = f"{count / 1e6:.2f} M values"
        if owner in _NETWORKS:
            what += f" (udaseg eval --weights {owner})"
        lines.append(f"{owner}: {what}")
    moments = [
        value
        for state in _states(checkpoint.optimizer)
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    count = sum(value.numel() for value in moments)
    lines.append(f"optimiser: {count / 1e6:.2f} M values, so training can go on (--resume)")
    return lines


def _states(optimizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    state = optimizer.get("state")
    return list(state.values()) if isinstance(state, Mapping) else []


def _classes(checkpoint: Checkpoint) -> str:
    names = checkpoint.classes["names"]
    return f"{len(names)}: {', '.join(names)}"


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


def _run_rows(folder: Path) -> dict[str, Any]:
    """Return what the run around a checkpoint tells: state, other checkpoints, scores, cost."""
    rows: dict[str, Any] = {}
    if status := _status(folder):
        rows["status"] = status
    kept = sorted(
        (folder / "checkpoints").glob("step-*.json"), key=lambda path: (len(path.stem), path.stem)
    )
    if kept:
        rows["kept"] = "steps " + ", ".join(str(int(path.stem[5:])) for path in kept)
    if best := _best(folder):
        rows["best"] = best
    scores = []
    for name, path in score_files(folder).items():
        read = read_scores(path, [])
        if read is not None:
            means = ", ".join(f"{key} {percent(mean)}" for key, mean in read.means.items())
            scores.append(f"{name}: {means} % ({read.protocol.get('weights', 'unknown weights')})")
    if scores:
        rows["scores"] = scores
    if cost := read_cost(folder):
        rows["cost"] = (
            f"{duration(cost['seconds'])} for {cost['step']} steps, at most "
            f"{cost['peak_memory_mib']} MiB of {cost['peak_memory_of']}"
        )
    return rows


def _best(folder: Path) -> list[str]:
    """Return the checkpoints that `--keep-best` kept."""
    found = []
    for path in sorted((folder / "checkpoints").glob("best-*/step-*.json")):
        record = read_json(path.parent / "best.json")
        steps = record.get("steps")
        known = steps.get(str(int(path.stem[5:]))) if isinstance(steps, dict) else None
        value = known.get("value") if isinstance(known, dict) else None
        shown = f" {value:.4f}" if isinstance(value, float) else ""
        criterion = path.parent.name.removeprefix("best-")
        found.append(f"{criterion}{shown} at step {int(path.stem[5:])}: {path.parent}")
    return found


def _status(folder: Path) -> str:
    path = folder / "status.json"
    if not path.is_file():
        return ""
    document = read_json(path)
    if not document:
        return "unreadable"
    left_out = ("unix_time", "miou")
    return ", ".join(
        f"{key} {value}" if key != "state" else str(value)
        for key, value in document.items()
        if key not in left_out and value not in (None, {})
    )
