"""Splits a run into stages: one for most methods, several for a staged one."""

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from udaseg.recipe.method import (
    Objective,
    PseudoLabelling,
    SourceJitter,
    SourceOnly,
    Stage,
    Staged,
    StageTarget,
    stage_ends,
)
from udaseg.recipe.schema import Recipe


@dataclass(frozen=True)
class Leg:
    """A range of steps with one objective, all settings resolved.

    Attributes:
        number: Index of the stage, from 0.
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

    number: int
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
        return str(PurePosixPath("stages") / f"{self.number + 1}-{self.name}")

    @property
    def reads_source(self) -> bool:
        """Whether the stage trains on source images."""
        return self.objective.kind != "self_distillation"

    @property
    def reads_target(self) -> bool:
        """Whether the stage trains on target images."""
        return not isinstance(self.objective, SourceOnly)


def legs(recipe: Recipe) -> tuple[Leg, ...]:
    """Return the stages of a recipe in order; the last ends at the last step."""
    method = recipe.method
    if not isinstance(method, Staged):
        sampling = recipe.source.sampling
        return (Leg(0, None, 0, recipe.steps, method, source_sampling=sampling),)
    ends = stage_ends(method, recipe.steps)
    begins = (0, *ends[:-1])
    return tuple(
        _leg(recipe, number, stage, begin, end)
        for number, (stage, begin, end) in enumerate(zip(method.stages, begins, ends, strict=True))
    )


def leg_at(recipe: Recipe, step: int) -> Leg:
    """Return the stage of step `step` (from 0); after the last step, the last stage."""
    all_legs = legs(recipe)
    return next((leg for leg in all_legs if step < leg.end), all_legs[-1])


def adapts(recipe: Recipe) -> bool:
    """Return whether any part of the run uses target images."""
    trained_on = any(leg.reads_target for leg in legs(recipe))
    return trained_on or recipe.method.target_statistics > 0


def network_of(recipe: Recipe, leg: Leg) -> Recipe:
    """Return the recipe with the batch norm mode and the learning rate of the stage."""
    optimizer = recipe.optimizer
    scaled = replace(optimizer, lr=optimizer.lr * leg.lr_mult)
    model = recipe.model
    if leg.batch_norm is not None:
        model = replace(model, batch_norm=leg.batch_norm)
    return replace(recipe, model=model, optimizer=scaled)


def _leg(recipe: Recipe, number: int, stage: Stage, begin: int, end: int) -> Leg:
    stage_sampling = stage.source_sampling
    sampling = recipe.source.sampling if stage_sampling is None else stage_sampling
    return Leg(
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
