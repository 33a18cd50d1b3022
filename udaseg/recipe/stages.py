"""Splits a run into stages: one for most methods, several for a staged one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from udaseg.errors import RecipeError
from udaseg.recipe.choices import BatchNorm, Sampling
from udaseg.recipe.load import to_dict
from udaseg.recipe.methods import (
    ColorJitter,
    Objective,
    PseudoLabelling,
    SourceOnly,
    Staged,
    StageSpec,
    StageTarget,
    stage_ends,
)
from udaseg.recipe.schema import BatchSize, Machine, Recipe


@dataclass(frozen=True)
class Stage:
    """A range of steps with one objective, all settings resolved.

    The settings without a text are those of `StageSpec`; a method without stages has one stage with
    their defaults.
    """

    index: int
    """Index of the stage, from 0."""
    name: str | None
    """Name of the stage; None when the run has only one."""
    begin: int
    """First step of the stage."""
    end: int
    """First step after the stage."""
    objective: Objective
    lr_mult: float = 1.0
    schedule_stop: float = 1.0
    source_sampling: Sampling = "uniform"
    """As the stage says, else as `source.sampling` of the recipe says."""
    source_jitter: ColorJitter | None = None
    target_jitter: ColorJitter | None = None
    batch_norm: BatchNorm | None = None
    pseudo_labels: PseudoLabelling | None = None
    target: StageTarget | None = None

    @property
    def folder(self) -> str | None:
        """Path of the stage's folder in the run folder, such as `stages/2-contrast`."""
        if self.name is None:
            return None
        return str(PurePosixPath("stages") / f"{self.index + 1}-{self.name}")

    @property
    def reads_source(self) -> bool:
        """Whether the stage trains on source images."""
        return self.objective.kind != "self_distillation"

    @property
    def reads_target(self) -> bool:
        """Whether the stage trains on target images."""
        return not isinstance(self.objective, SourceOnly)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe in order; the last ends at the last step."""
    method = recipe.method
    if not isinstance(method, Staged):
        sampling = recipe.source.sampling
        return (Stage(0, None, 0, recipe.steps, method, source_sampling=sampling),)
    ends = stage_ends(method, recipe.steps)
    begins = (0, *ends[:-1])
    return tuple(
        _stage(recipe, number, stage, begin, end)
        for number, (stage, begin, end) in enumerate(zip(method.stages, begins, ends, strict=True))
    )


def stage_at(recipe: Recipe, step: int) -> Stage:
    """Return the stage of step `step` (from 0); after the last step, the last stage."""
    stages = stages_of(recipe)
    return next((stage for stage in stages if step < stage.end), stages[-1])


def adapts(recipe: Recipe) -> bool:
    """Return whether any part of the run uses target images."""
    trained_on = any(stage.reads_target for stage in stages_of(recipe))
    return trained_on or recipe.method.target_statistics > 0


def recipe_of_stage(recipe: Recipe, stage: Stage) -> Recipe:
    """Return the recipe with the batch norm mode and the learning rate of the stage."""
    optimizer = recipe.optimizer
    scaled = replace(optimizer, lr=optimizer.lr * stage.lr_mult)
    model = recipe.model
    if stage.batch_norm is not None:
        model = replace(model, batch_norm=stage.batch_norm)
    return replace(recipe, model=model, optimizer=scaled)


def _stage(recipe: Recipe, number: int, stage: StageSpec, begin: int, end: int) -> Stage:
    stage_sampling = stage.source_sampling
    sampling = recipe.source.sampling if stage_sampling is None else stage_sampling
    return Stage(
        number,
        stage.name,
        begin,
        end,
        stage.objective,
        stage.lr_mult,
        stage.schedule_stop,
        sampling,
        stage.source_jitter,
        stage.target_jitter,
        stage.batch_norm,
        stage.pseudo_labels,
        stage.target,
    )


def numeric_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that determine the numbers of a run, as plain values."""
    # precision is a setting of the machine, but it changes every number
    values = to_dict(replace(recipe, expected=None))
    return {**values, "machine": {"precision": recipe.machine.precision}}


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of the numeric settings that differ from their defaults.

    Neither the formatting of the file nor a setting that a later version adds changes it.
    """
    machine = Machine(precision=recipe.machine.precision)
    values = _without_defaults(replace(recipe, expected=None, machine=machine))
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    """Return a section as plain values, without those that are the default."""
    if is_dataclass(value):
        return {
            part.name: _without_defaults(getattr(value, part.name))
            for part in fields(value)
            if getattr(value, part.name) != _default(part)
        }
    if isinstance(value, Mapping):
        return {name: _without_defaults(item) for name, item in value.items()}
    return [_without_defaults(item) for item in value] if isinstance(value, tuple) else value


def _default(part: Field[Any]) -> Any:
    return part.default if part.default_factory is MISSING else part.default_factory()


def determining_values(recipe: Recipe, processes: int) -> dict[str, object]:
    """Return the settings that change a run's results, with batch sizes over all processes."""
    batch = BatchSize(recipe.batch.source * processes, recipe.batch.target * processes)
    method = recipe.method
    if isinstance(method, Staged):
        stages = tuple(
            stage
            if (stage_target := stage.target) is None
            else replace(stage, target=replace(stage_target, batch=stage_target.batch * processes))
            for stage in method.stages
        )
        method = replace(method, stages=stages)
    return numeric_settings(replace(recipe, batch=batch, method=method))


def refuse_changed_settings(
    path: Path, before: Recipe, processes: int, now: Recipe, processes_now: int
) -> None:
    """Refuse to resume with a recipe that differs in more than `machine` from that in `path`.

    Raises:
        RecipeError: It differs.
    """
    old, new = determining_values(before, processes), determining_values(now, processes_now)
    changed = changed_settings(old, new)
    if not changed:
        return
    text = f"{path}: --resume needs the same settings, but " + "; ".join(changed)
    if processes != processes_now:
        raise RecipeError(
            f"{text}, counting the images of all processes ({processes} before, {processes_now} "
            f"now). Start {processes} processes again, or set batch.source and batch.target so "
            "that a step has as many images as before"
        )
    raise RecipeError(f"{text}. Start a new run with --init instead")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between the plain values of two recipes, one text for each key."""
    old, new = leaves(before), leaves(now)
    return [
        f"{key} was {old.get(key)} and is now {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def leaves(value: object, prefix: str = "") -> dict[str, object]:
    """Return the values of nested dictionaries by their dotted keys."""
    if not isinstance(value, dict):
        return {prefix[1:]: value}
    return {
        key: leaf for name in value for key, leaf in leaves(value[name], f"{prefix}.{name}").items()
    }
