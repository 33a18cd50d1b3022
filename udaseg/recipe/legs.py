"""The legs of a run: one for most methods, one for each stage of a staged one."""

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
    """A stretch of steps with one objective.

    Attributes:
        number: From 0.
        name: Of the stage; None when the run is one leg.
        begin: Steps of the run before it.
        end: Steps of the run when it is over.
        objective: What is minimised.
        lr_mult: Factor of the recipe's learning rates.
        schedule_stop: How far the decay of the rate has come at the end, in (0, 1].
        source_sampling: How source images are drawn: the stage's word where it has one, otherwise
            the recipe's `source.sampling`.
        source_jitter: Colour jitter of source images; None leaves them as they are.
        batch_norm: Of the backbone; None keeps the model's.
        pseudo_labels: How the target is labelled before it; None does not.
        target: How target images are cut; None as the recipe says.
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
        """The stage's folder below the run's, such as `stages/2-contrast`."""
        if self.name is None:
            return None
        return str(PurePosixPath("stages") / f"{self.number + 1}-{self.name}")

    @property
    def reads_source(self) -> bool:
        """Whether source images are trained on."""
        return self.objective.kind != "self_distillation"

    @property
    def reads_target(self) -> bool:
        """Whether target images are trained on."""
        return not isinstance(self.objective, SourceOnly)


def legs(recipe: Recipe) -> tuple[Leg, ...]:
    """Return the legs of a recipe in order; the last ends with the run."""
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
    """Return the leg that step number `step` (from 0) is in; the last one when all are done."""
    all_legs = legs(recipe)
    return next((leg for leg in all_legs if step < leg.end), all_legs[-1])


def adapts(recipe: Recipe) -> bool:
    """Return whether any part of the run looks at target images."""
    trained_on = any(leg.reads_target for leg in legs(recipe))
    return trained_on or recipe.method.target_statistics > 0


def network_of(recipe: Recipe, leg: Leg) -> Recipe:
    """Return the recipe with the leg's batch norm and learning rate put in."""
    optimizer = recipe.optimizer
    scaled = replace(optimizer, lr=optimizer.lr * leg.lr_mult)
    model = recipe.model
    if leg.batch_norm is not None:
        model = replace(model, batch_norm=leg.batch_norm)
    return replace(recipe, model=model, optimizer=scaled)


def _leg(recipe: Recipe, number: int, stage: Stage, begin: int, end: int) -> Leg:
    own = stage.source_sampling
    sampling = recipe.source.sampling if own is None else own
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
