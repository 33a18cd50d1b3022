"""Splits a run into stages: one for most methods, several for a staged one."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from udaseg.recipe.load import to_dict
from udaseg.recipe.methods import (
    Objective,
    PseudoLabelling,
    SourceJitter,
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

    Attributes:
        index: Index of the stage, from 0.
        name: Name of the stage; None when the run has only one.
        begin: First step of the stage.
        end: First step after the stage.
        objective: What is minimised.
        lr_mult: Factor of the recipe's learning rates.
        schedule_stop: Progress of the learning rate decay at the end of the stage, in (0, 1].
        source_sampling: How source images are sampled: as the stage says, else as the recipe's
            `source.sampling` says.
        source_jitter: Colour jitter of source images; None for no jitter.
        batch_norm: Mode of the backbone's batch norm; None keeps that of the model.
        pseudo_labels: How the target is labelled before the stage; None for no labels.
        target: Size and crop of target images; None keeps those of the recipe.
    """

    index: int
    name: str | None
    begin: int
    end: int
    objective: Objective
    lr_mult: float = 1.0
    schedule_stop: float = 1.0
    source_sampling: Literal["uniform", "class_balanced", "rare_class"] = "uniform"
    source_jitter: SourceJitter | None = None
    batch_norm: Literal["train", "affine_frozen", "frozen"] | None = None
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
        stage.batch_norm,
        stage.pseudo_labels,
        stage.target,
    )


def numeric_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that determine the numbers of a run, as plain values."""
    # precision is a setting of the machine, but it changes every number
    machine = Machine(precision=recipe.machine.precision)
    return to_dict(replace(recipe, machine=machine, expected=None))


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of `numeric_settings`; the formatting of the file does not change it."""
    text = json.dumps(numeric_settings(recipe), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
