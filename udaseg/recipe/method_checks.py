"""Which values of a method's section are out of range."""

import re

from udaseg.recipe.method import (
    Adversarial,
    EntropyMinimization,
    Method,
    Objective,
    PrototypeAlignment,
    SelfDistillation,
    SelfTraining,
    SourceOnly,
    Stage,
    Staged,
    WholeRun,
    stage_ends,
)
from udaseg.recipe.terms import Prototypes, Semantic

Found = list[tuple[str, str]]


def require(found: Found, where: str, holds: bool, must: str, value: object) -> None:
    """List `where` with what its value must be, unless that holds."""
    if not holds:
        found.append((where, f"must be {must}, got {value}"))


def _self_training_problems(found: Found, method: SelfTraining, where: str) -> None:
    def unit(part: str, value: float) -> None:
        require(found, f"{where}.{part}", 0 <= value <= 1, "in [0, 1]", value)

    unit("teacher.momentum", method.teacher.momentum)
    unit("mixing.confidence", method.mixing.confidence)
    unit("augmentation.jitter_probability", method.augmentation.jitter_probability)
    unit("augmentation.blur_probability", method.augmentation.blur_probability)
    require(
        found,
        f"{where}.augmentation.jitter",
        0 <= method.augmentation.jitter <= 0.5,
        "in [0, 0.5] (hue turns at most half a circle)",
        method.augmentation.jitter,
    )
    low, high = method.augmentation.blur_sigma
    sigmas = 0 < low <= high <= 2
    must = "rising, above 0 and at most 2 px"
    require(found, f"{where}.augmentation.blur_sigma", sigmas, must, (low, high))
    require(found, f"{where}.mix_weight", method.mix_weight >= 0, "at least 0", method.mix_weight)
    if method.prototypes is not None:
        _prototype_problems(found, method.prototypes, f"{where}.prototypes")
    if (semantic := method.semantic) is not None:
        _semantic_problems(found, semantic, f"{where}.semantic")
        alone = method.regional is None
        require(found, f"{where}.semantic", alone, "alone: regional has its own projector", "both")
    if (regional := method.regional) is not None:
        unit("regional.min_confidence", regional.min_confidence)
        require(found, f"{where}.regional.weight", regional.weight >= 0, ">= 0", regional.weight)
        require(
            found,
            f"{where}.regional.temperature",
            regional.temperature > 0,
            "above 0",
            regional.temperature,
        )
        require(found, f"{where}.regional.start", regional.start >= 0, ">= 0", regional.start)
        for part in ("bank_steps", "cells_per_view", "region_size"):
            value = getattr(regional, part)
            require(found, f"{where}.regional.{part}", value >= 1, "at least 1", value)
        require(
            found,
            f"{where}.regional.projector.channels",
            regional.projector.channels >= 1,
            "at least 1",
            regional.projector.channels,
        )


def method_problems(found: Found, method: Method, steps: int) -> None:
    """List every value of a method that is out of range."""
    images = method.target_statistics
    require(found, "method.target_statistics", images >= 0, "at least 0", images)
    if isinstance(method, Staged):
        _staged_problems(found, method, steps)
    else:
        _objective_problems(found, method, "method")


def _objective_problems(found: Found, method: Objective, where: str) -> None:
    match method:
        case SelfTraining():
            _self_training_problems(found, method, where)
        case Adversarial():
            for part in ("temperature", "discriminator_lr"):
                value = getattr(method, part)
                require(found, f"{where}.{part}", value > 0, "above 0", value)
            require(found, f"{where}.weight", method.weight >= 0, "at least 0", method.weight)
        case EntropyMinimization():
            require(found, f"{where}.weight", method.weight >= 0, "at least 0", method.weight)
            if method.power is not None:
                require(found, f"{where}.power", method.power > 0, "above 0", method.power)
            if method.band is not None:
                band = method.band
                require(found, f"{where}.band", 0 <= band <= 0.5, "in [0, 0.5]", band)
        case PrototypeAlignment():
            _prototype_problems(found, method.prototypes, f"{where}.prototypes")
        case SourceOnly() | SelfDistillation():
            pass


def _prototype_problems(found: Found, prototypes: Prototypes, where: str) -> None:
    momentum, tau = prototypes.momentum, prototypes.temperature
    require(found, f"{where}.momentum", 0 <= momentum <= 1, "in [0, 1]", momentum)
    require(found, f"{where}.weight", prototypes.weight >= 0, ">= 0", prototypes.weight)
    sure = prototypes.min_confidence
    require(found, f"{where}.min_confidence", 0 <= sure <= 1, "in [0, 1]", sure)
    require(found, f"{where}.temperature", tau > 0, "above 0", tau)


def _semantic_problems(found: Found, semantic: Semantic, where: str) -> None:
    momentum, tau = semantic.momentum, semantic.temperature
    require(found, f"{where}.momentum", 0 <= momentum <= 1, "in [0, 1]", momentum)
    require(found, f"{where}.temperature", tau > 0, "above 0", tau)
    require(found, f"{where}.weight", semantic.weight >= 0, "at least 0", semantic.weight)
    require(found, f"{where}.start", semantic.start >= 0, "at least 0", semantic.start)
    for part in ("bank_rows", "channels"):
        value = getattr(semantic, part)
        require(found, f"{where}.{part}", value >= 1, "at least 1", value)


def _staged_problems(found: Found, method: Staged, steps: int) -> None:
    stages = method.stages
    if not stages:
        found.append(("method.stages", "must name at least one stage"))
        return
    total = sum(stage.share for stage in stages)
    require(found, "method.stages", abs(total - 1) < 1e-6, "shares that add up to 1", total)
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        where = f"method.stages[{number}]"
        plain = re.fullmatch(r"[a-z0-9_]+", stage.name) is not None
        require(found, f"{where}.name", plain, "a-z, 0-9 and '_'", repr(stage.name))
        alone = names.count(stage.name) == 1
        require(found, f"{where}.name", alone, "a name of its own", repr(stage.name))
        require(found, f"{where}.share", stage.share > 0, "above 0", stage.share)
        require(found, f"{where}.lr_mult", stage.lr_mult > 0, "above 0", stage.lr_mult)
        stop = stage.schedule_stop
        require(found, f"{where}.schedule_stop", 0 < stop <= 1, "in (0, 1]", stop)
        if (jitter := stage.source_jitter) is not None:
            strong, hue = jitter.strength, jitter.hue
            require(found, f"{where}.source_jitter.strength", 0 <= strong <= 1, "in [0, 1]", strong)
            require(found, f"{where}.source_jitter.hue", 0 <= hue <= 0.5, "in [0, 0.5]", hue)
        _stage_spare_problems(found, stage, where)
        _stage_label_problems(found, stage, number, where)
        _objective_problems(found, stage.objective, f"{where}.objective")
    begin = 0
    for number, end in enumerate(stage_ends(method, steps)):
        if end <= begin and total > 0:
            what = f"{steps}, which leaves no step for method.stages[{number}]"
            found.append(("steps", f"must give each stage a step, got {what}"))
        begin = end


def _stage_spare_problems(found: Found, stage: Stage, where: str) -> None:
    """List what a stage says about images that it does not see, or what the whole run says."""
    kind = stage.objective.kind
    if isinstance(stage.objective, WholeRun) and stage.objective.target_statistics:
        where_else = "must be left out: it belongs to the run, at method.target_statistics"
        found.append((f"{where}.objective.target_statistics", where_else))
    if stage.target is not None and kind == "source_only":
        found.append((f"{where}.target", f"must be left out: {kind} sees no target image"))
    if kind == "self_distillation":
        if stage.source_jitter is not None:
            found.append((f"{where}.source_jitter", f"must be left out: {kind} sees no source"))
        if stage.source_sampling is not None:
            found.append((f"{where}.source_sampling", f"must be left out: {kind} sees no source"))


def _stage_label_problems(found: Found, stage: Stage, number: int, where: str) -> None:
    needs = isinstance(stage.objective, PrototypeAlignment | SelfDistillation)
    labelling = stage.pseudo_labels
    if needs != (labelling is not None):
        must = "given: this objective learns from pseudo-labels"
        spare = "left out: this objective learns from none"
        found.append((f"{where}.pseudo_labels", f"must be {must if needs else spare}"))
    if needs and number == 0:
        what = "must not come first: nothing could make its pseudo-labels"
        found.append((f"{where}.objective", what))
    if labelling is not None:
        for part in ("quantile", "cap"):
            value = getattr(labelling, part)
            require(found, f"{where}.pseudo_labels.{part}", 0 <= value <= 1, "in [0, 1]", value)
    if (target := stage.target) is not None:
        low, high = target.scale
        rising = 0 < low <= high
        require(found, f"{where}.target.scale", rising, "rising and above 0", (low, high))
        require(found, f"{where}.target.batch", target.batch >= 1, "at least 1", target.batch)
        for part in ("resize", "crop"):
            size = getattr(target, part)
            if size is not None:
                require(found, f"{where}.target.{part}", min(size) >= 1, "two sizes >= 1 px", size)
