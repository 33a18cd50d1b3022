"""What a run folder or a checkpoint holds."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError
from udaseg.models.backbones.build import build_backbone
from udaseg.recipe.load import from_dict, load
from udaseg.recipe.methods import SelfTraining, regularizer_specs, warm_up_steps
from udaseg.recipe.schema import BACKBONES, TIMM_PREFIX, Domain, Recipe, Source, Validation
from udaseg.recipe.stages import adapts, stages_of
from udaseg.runs.base import BaseWeights
from udaseg.runs.best import read_record
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.folder import run_folder_of
from udaseg.runs.manifests import list_manifests, step_of
from udaseg.runs.records import read_status
from udaseg.runs.scores import Scores, read_evaluations
from udaseg.runs.status import read_cost
from udaseg.runs.worth import Worth, read_worth
from udaseg.text import format_duration, format_size, percent

_NETWORKS = ("student", "teacher")
_MEMORIES = {"weights": "confidence of classes", "prior": "shares of classes"}
_HIDDEN_STATUS = ("unix_time", "miou")


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of a checkpoint file.

    Attributes:
        size: In bytes.
        verified: Whether the digest is that of its manifest; without a manifest it is unknown.
        values: Number of stored values by owner, such as `student` or `memory of regional`.
        optimizer_values: Number of stored values of the optimiser.
        classes: Names of the network's classes.
        base: The weights file that adapters need beside this one; None if it holds all.
    """

    path: Path
    size: int
    sha256: str
    verified: bool
    step: int
    values: Mapping[str, int]
    optimizer_values: int
    classes: tuple[str, ...]
    base: BaseWeights | None = None


@dataclass(frozen=True)
class BestCheckpoint:
    """A checkpoint that `keep_best` stored, and the value of its criterion, if it is recorded."""

    criterion: str
    value: float | None
    step: int
    folder: Path


@dataclass(frozen=True)
class RunInfo:
    """What a run folder or a checkpoint holds.

    Attributes:
        path: The run folder or checkpoint, as given.
        checkpoint: The checkpoint, or the newest intact one of the run; None if there is none yet.
        recipe: The recipe; None if it cannot be loaded.
        recipe_problem: Why the recipe cannot be loaded, such as a package that is not installed;
            empty if it can.
        status: Content of the run's `status.json`; empty if it is damaged, None without the file.
        kept: Steps of the checkpoints in the run, in increasing order.
        best: The checkpoints that `keep_best` stored.
        scores: The readable evaluations of the run, by name.
        cost: Time, images and memory of the training; empty if they are not recorded.
        worth: Whether the adaptation was worth it; None if it was not compared.
        stride: Input pixels per cell of the network's last map, which need not be that of the
            recipe; None if it is not known.
    """

    path: Path
    checkpoint: CheckpointInfo | None
    recipe: Recipe | None
    recipe_problem: str
    status: Mapping[str, Any] | None
    kept: tuple[int, ...]
    best: tuple[BestCheckpoint, ...]
    scores: Mapping[str, Scores]
    cost: Mapping[str, Any]
    worth: Worth | None = None
    stride: int | None = None

    def to_json(self) -> dict[str, str | list[str]]:
        """Return everything as text, by title, in display order."""
        rows: dict[str, str | list[str]]
        if self.checkpoint is None:
            rows = {"run": str(self.path), "checkpoint": "none yet"}
        else:
            rows = _checkpoint_rows(self.checkpoint)
            if self.recipe is not None:
                rows["step"] = f"{self.checkpoint.step} of {self.recipe.steps}"
        if self.recipe is None:
            rows["recipe"] = f"cannot be loaded: {self.recipe_problem}"
        else:
            rows |= _recipe_rows(self.recipe, self.stride)
        if self.checkpoint is not None:
            rows |= _network_rows(self.checkpoint)
        if self.status is not None:
            rows["status"] = _status_text(self.status)
        if self.kept:
            rows["kept"] = "steps " + ", ".join(map(str, self.kept))
        if self.best:
            rows["best"] = [_best_text(best) for best in self.best]
        if self.scores:
            rows["scores"] = [_score_text(name, scores) for name, scores in self.scores.items()]
        if self.worth is not None:
            rows["worth it?"] = f"{self.worth.verdict}: {self.worth.reason}"
        if self.cost:
            rows["cost"] = (
                f"{format_duration(self.cost['seconds'])} for {self.cost['step']} steps, at most "
                f"{self.cost['peak_memory_mib']} MiB of {self.cost['peak_memory_of']}"
            )
        return rows


def info(run: str | os.PathLike[str]) -> RunInfo:
    """Return what a run folder or a checkpoint holds.

    Args:
        run: Run folder or checkpoint; of a run, its newest intact checkpoint is described.

    Returns:
        The details. A recipe that cannot be loaded is named in `recipe_problem`.

    Raises:
        CheckpointError: There is neither a run nor a readable checkpoint.

    Example:
        details = udaseg.info("runs/city-rccr")
        details.checkpoint.step, details.scores["city-val"].miou
    """
    path = Path(run)
    folder = run_folder_of(path)
    try:
        checkpoint: Checkpoint | None = find_checkpoint(path)
    except CheckpointError:
        if not (path / "recipe.yaml").is_file():
            raise
        checkpoint = None  # a run without checkpoints is valid
    recipe, problem = None, ""
    try:
        if checkpoint is None:
            recipe = load(path / "recipe.yaml", stored=True)
        else:
            recipe = from_dict(checkpoint.recipe, origin=str(checkpoint.path))
    except (RecipeError, EnvironmentFault) as error:
        problem = str(error)
    has_status = (folder / "status.json").is_file()
    return RunInfo(
        path=path,
        checkpoint=None if checkpoint is None else _checkpoint_info(checkpoint),
        recipe=recipe,
        recipe_problem=problem,
        status=read_status(folder) if has_status else None,
        kept=tuple(step_of(path) for path in reversed(list_manifests(folder / "checkpoints"))),
        best=_best_checkpoints(folder),
        scores=read_evaluations(folder, []),
        cost=read_cost(folder),
        worth=read_worth(folder, None if checkpoint is None else checkpoint.sha256),
        stride=None if recipe is None else _own_stride(recipe),
    )


def _own_stride(recipe: Recipe) -> int | None:
    """Return the stride of the network, which need not be that of the recipe.

    None for a network of another package, which is not run for that, or that cannot be built.
    """
    model = recipe.model
    if model.backbone not in BACKBONES and not model.backbone.startswith(TIMM_PREFIX):
        return None
    try:
        with torch.device("meta"):
            body = build_backbone(
                model.backbone, output_stride=model.output_stride, weights="random"
            )
    except (RecipeError, EnvironmentFault):
        return None
    return body.strides[-1]


def _values_by_owner(state: Mapping[str, Tensor]) -> Mapping[str, int]:
    values: Counter[str] = Counter()
    for name, value in state.items():
        owner, _, part = name.partition(".")
        if owner == "regularizers":
            owner = f"memory of {part.partition('.')[0]}"
        values[_MEMORIES.get(owner, owner)] += value.numel()
    return values


def _checkpoint_info(checkpoint: Checkpoint) -> CheckpointInfo:
    return CheckpointInfo(
        path=checkpoint.path,
        size=checkpoint.path.stat().st_size,
        sha256=checkpoint.sha256,
        # the file was compared with its manifest, if there is one, when it was read
        verified=checkpoint.path.with_suffix(".json").is_file(),
        step=checkpoint.step,
        values=_values_by_owner(checkpoint.objective),
        optimizer_values=sum(
            value.numel()
            for tensors in checkpoint.optimizer.get("state", {}).values()
            for value in tensors.values()
            if isinstance(value, Tensor)
        ),
        classes=tuple(checkpoint.classes["names"]),
        base=checkpoint.base,
    )


def _best_checkpoints(folder: Path) -> tuple[BestCheckpoint, ...]:
    checkpoints = []
    for path in sorted((folder / "checkpoints").glob("best-*/step-*.json")):
        criterion, step = path.parent.name.removeprefix("best-"), step_of(path)
        value = read_record(folder, criterion)["steps"].get(str(step), {}).get("value")
        checkpoints.append(BestCheckpoint(criterion, value, step, path.parent))
    return tuple(checkpoints)


def _checkpoint_rows(checkpoint: CheckpointInfo) -> dict[str, str | list[str]]:
    digest = f"{checkpoint.sha256} (verified)"
    return {
        "checkpoint": str(checkpoint.path),
        "file": f"{checkpoint.size / 1e6:.1f} MB",
        "sha256": digest if checkpoint.verified else "no manifest, so it cannot be verified",
        "step": str(checkpoint.step),
    }


def _recipe_rows(recipe: Recipe, stride: int | None) -> dict[str, str]:
    model, batch = recipe.model, recipe.batch
    rows = {
        "recipe": f"{recipe.name}, seed {recipe.seed}, method {method_text(recipe)}",
        "source": domain_text(recipe.source),
        "target": target_text(recipe),
        "batch": f"{batch.source} source"
        + (f" and {batch.target} target images" if adapts(recipe) else " images"),
        "network": f"{model.backbone}, {model.head}, stride {stride or model.output_stride}, "
        f"initialised from {model.weights} weights",
    }
    if recipe.validation.data is not None:
        rows["scored on"] = f"{recipe.validation.data}, {recipe.validation.split}"
    return rows


def method_text(recipe: Recipe) -> str:
    """Return what a run minimises: its loss terms, or its stages with their last steps."""
    stages = stages_of(recipe)
    if stages[0].name is not None:
        parts = [f"{stage.name} ({stage.objective.kind}) to {stage.end}" for stage in stages]
        return f"{recipe.method.kind}: {', '.join(parts)}"
    method, terms = recipe.method, list[str]()
    if isinstance(method, SelfTraining):
        terms = list(regularizer_specs(method))
        if method.masking:
            terms.append("masking" + " (plain ViTs only)" * (method.masking.weight is None))
    terms += ["target statistics"] if method.target_statistics else []
    warm_up = warm_up_steps(method, recipe.steps)
    after = f", after {warm_up} steps on the source alone" if warm_up else ""
    return " + ".join([method.kind, *terms]) + after


def target_text(recipe: Recipe) -> str:
    """Return the target of a run, or that it has none."""
    return domain_text(recipe.target) if adapts(recipe) else "none: trained on the source alone"


def domain_text(domain: Domain | Validation) -> str:
    """Return a data set, its split, and the size of its images and crops."""
    if domain.data is None:
        return "nothing"
    sets = domain.sets if isinstance(domain, Domain) else (domain.data,)
    parts = [" + ".join(sets), domain.split]
    if isinstance(domain, Source) and domain.resize_each:
        sizes = " and ".join(map(format_size, domain.sizes))
        parts.append(f"sizes {sizes}")
    elif domain.resize is not None:
        parts.append(f"resized to {format_size(domain.resize)}")
    if isinstance(domain, Domain):
        if domain.scale != (1.0, 1.0):
            parts.append(f"enlarged by {domain.scale[0]:g} to {domain.scale[1]:g}")
        parts.append(f"crops of {format_size(domain.crop)}")
    return ", ".join(parts)


def _network_rows(checkpoint: CheckpointInfo) -> dict[str, str | list[str]]:
    lines = []
    for owner, count in checkpoint.values.items():
        hint = f" (udaseg eval --weights {owner})" if owner in _NETWORKS else ""
        lines.append(f"{owner}: {_values_text(count)}{hint}")
    if (base := checkpoint.base) is not None:
        where = "" if Path(base.path).is_file() else ", not there: give a copy with --base FILE"
        lines.append(f"base: {base.path} ({base.size / 1e6:.1f} MB, SHA-256 {base.sha256}{where})")
    count = checkpoint.optimizer_values
    lines.append(f"optimiser: {_values_text(count)}, so training can be resumed (--resume)")
    classes = f"{len(checkpoint.classes)}: {', '.join(checkpoint.classes)}"
    return {"weights": lines, "classes": classes}


def _values_text(count: int) -> str:
    return f"{count / 1e6:.2f} M values" if count >= 100_000 else f"{count:,} values"


def _status_text(status: Mapping[str, Any]) -> str:
    if not status:
        return "unreadable"
    return ", ".join(
        f"{key} {value}" if key != "state" else str(value)
        for key, value in status.items()
        if key not in _HIDDEN_STATUS and value not in (None, {})
    )


def _best_text(best: BestCheckpoint) -> str:
    value = "" if best.value is None else f" {best.value:.4f}"
    return f"{best.criterion}{value} at step {best.step}: {best.folder}"


def _score_text(name: str, scores: Scores) -> str:
    means = ", ".join(f"{key} {percent(mean)}" for key, mean in scores.means.items())
    return f"{name}: {means} % ({scores.protocol.get('weights', 'unknown weights')})"
