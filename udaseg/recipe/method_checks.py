"""Range checks of the `method` section."""

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


def require(problems: Found, key: str, holds: bool, must: str, value: object) -> None:
    """Append `key` with what its value must be, unless `holds`."""
    if not holds:
        problems.append((key, f"must be {must}, got {value}"))


def _self_training_problems(problems: Found, method: SelfTraining, key: str) -> None:
    def unit(name: str, value: float) -> None:
        require(problems, f"{key}.{name}", 0 <= value <= 1, "in [0, 1]", value)

    unit("teacher.momentum", method.teacher.momentum)
    unit("mixing.confidence", method.mixing.confidence)
    unit("augmentation.jitter_probability", method.augmentation.jitter_probability)
    unit("augmentation.blur_probability", method.augmentation.blur_probability)
    require(
        problems,
        f"{key}.augmentation.jitter",
        0 <= method.augmentation.jitter <= 0.5,
        "in [0, 0.5] (hue turns at most half a circle)",
        method.augmentation.jitter,
    )
    low, high = method.augmentation.blur_sigma
    valid = 0 < low <= high <= 2
    must = "rising, above 0 and at most 2 px"
    require(problems, f"{key}.augmentation.blur_sigma", valid, must, (low, high))
    require(problems, f"{key}.mix_weight", method.mix_weight >= 0, "at least 0", method.mix_weight)
    if method.prototypes is not None:
        _prototype_problems(problems, method.prototypes, f"{key}.prototypes")
    if (semantic := method.semantic) is not None:
        _semantic_problems(problems, semantic, f"{key}.semantic")
        no_regional = method.regional is None
        require(
            problems,
            f"{key}.semantic",
            no_regional,
            "used without regional, which has its own projector",
            "both",
        )
    if (regional := method.regional) is not None:
        unit("regional.min_confidence", regional.min_confidence)
        require(problems, f"{key}.regional.weight", regional.weight >= 0, ">= 0", regional.weight)
        require(
            problems,
            f"{key}.regional.temperature",
            regional.temperature > 0,
            "above 0",
            regional.temperature,
        )
        require(problems, f"{key}.regional.start", regional.start >= 0, ">= 0", regional.start)
        for name in ("bank_steps", "cells_per_view", "region_size"):
            value = getattr(regional, name)
            require(problems, f"{key}.regional.{name}", value >= 1, "at least 1", value)
        require(
            problems,
            f"{key}.regional.projector.channels",
            regional.projector.channels >= 1,
            "at least 1",
            regional.projector.channels,
        )


def method_problems(problems: Found, method: Method, steps: int) -> None:
    """Append the values of a method that are out of range."""
    images = method.target_statistics
    require(problems, "method.target_statistics", images >= 0, "at least 0", images)
    if isinstance(method, Staged):
        _staged_problems(problems, method, steps)
    else:
        _objective_problems(problems, method, "method")


def _objective_problems(problems: Found, method: Objective, key: str) -> None:
    match method:
        case SelfTraining():
            _self_training_problems(problems, method, key)
        case Adversarial():
            for name in ("temperature", "discriminator_lr"):
                value = getattr(method, name)
                require(problems, f"{key}.{name}", value > 0, "above 0", value)
            require(problems, f"{key}.weight", method.weight >= 0, "at least 0", method.weight)
        case EntropyMinimization():
            require(problems, f"{key}.weight", method.weight >= 0, "at least 0", method.weight)
            if method.power is not None:
                require(problems, f"{key}.power", method.power > 0, "above 0", method.power)
            if method.band is not None:
                band = method.band
                require(problems, f"{key}.band", 0 <= band <= 0.5, "in [0, 0.5]", band)
        case PrototypeAlignment():
            _prototype_problems(problems, method.prototypes, f"{key}.prototypes")
        case SourceOnly() | SelfDistillation():
            pass


def _prototype_problems(problems: Found, prototypes: Prototypes, key: str) -> None:
    momentum, temperature = prototypes.momentum, prototypes.temperature
    require(problems, f"{key}.momentum", 0 <= momentum <= 1, "in [0, 1]", momentum)
    require(problems, f"{key}.weight", prototypes.weight >= 0, ">= 0", prototypes.weight)
    min_confidence = prototypes.min_confidence
    require(
        problems, f"{key}.min_confidence", 0 <= min_confidence <= 1, "in [0, 1]", min_confidence
    )
    require(problems, f"{key}.temperature", temperature > 0, "above 0", temperature)


def _semantic_problems(problems: Found, semantic: Semantic, key: str) -> None:
    momentum, temperature = semantic.momentum, semantic.temperature
    require(problems, f"{key}.momentum", 0 <= momentum <= 1, "in [0, 1]", momentum)
    require(problems, f"{key}.temperature", temperature > 0, "above 0", temperature)
    require(problems, f"{key}.weight", semantic.weight >= 0, "at least 0", semantic.weight)
    require(problems, f"{key}.start", semantic.start >= 0, "at least 0", semantic.start)
    for name in ("bank_rows", "channels"):
        value = getattr(semantic, name)
        require(problems, f"{key}.{name}", value >= 1, "at least 1", value)


def _staged_problems(problems: Found, method: Staged, steps: int) -> None:
    stages = method.stages
    if not stages:
        problems.append(("method.stages", "must name at least one stage"))
        return
    total = sum(stage.share for stage in stages)
    require(problems, "method.stages", abs(total - 1) < 1e-6, "shares that add up to 1", total)
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        key = f"method.stages[{number}]"
        valid = re.fullmatch(r"[a-z0-9_]+", stage.name) is not None
        require(problems, f"{key}.name", valid, "a-z, 0-9 and '_'", repr(stage.name))
        unique = names.count(stage.name) == 1
        require(problems, f"{key}.name", unique, "a unique name", repr(stage.name))
        require(problems, f"{key}.share", stage.share > 0, "above 0", stage.share)
        require(problems, f"{key}.lr_mult", stage.lr_mult > 0, "above 0", stage.lr_mult)
        schedule_stop = stage.schedule_stop
        require(
            problems, f"{key}.schedule_stop", 0 < schedule_stop <= 1, "in (0, 1]", schedule_stop
        )
        if (jitter := stage.source_jitter) is not None:
            strength, hue = jitter.strength, jitter.hue
            require(
                problems, f"{key}.source_jitter.strength", 0 <= strength <= 1, "in [0, 1]", strength
            )
            require(problems, f"{key}.source_jitter.hue", 0 <= hue <= 0.5, "in [0, 0.5]", hue)
        _stage_spare_problems(problems, stage, key)
        _stage_label_problems(problems, stage, number, key)
        _objective_problems(problems, stage.objective, f"{key}.objective")
    begin = 0
    for number, end in enumerate(stage_ends(method, steps)):
        if end <= begin and total > 0:
            shown = f"{steps}, which leaves no step for method.stages[{number}]"
            problems.append(("steps", f"must give each stage a step, got {shown}"))
        begin = end


def _stage_spare_problems(problems: Found, stage: Stage, key: str) -> None:
    """Append settings for images that the stage does not use, or that belong to the whole run."""
    kind = stage.objective.kind
    if isinstance(stage.objective, WholeRun) and stage.objective.target_statistics:
        problem = "must be left out: set it for the whole run, as method.target_statistics"
        problems.append((f"{key}.objective.target_statistics", problem))
    if stage.target is not None and kind == "source_only":
        problems.append((f"{key}.target", f"must be left out: {kind} uses no target images"))
    if kind == "self_distillation":
        if stage.source_jitter is not None:
            problems.append(
                (f"{key}.source_jitter", f"must be left out: {kind} uses no source images")
            )
        if stage.source_sampling is not None:
            problems.append(
                (f"{key}.source_sampling", f"must be left out: {kind} uses no source images")
            )


def _stage_label_problems(problems: Found, stage: Stage, number: int, key: str) -> None:
    needs_labels = isinstance(stage.objective, PrototypeAlignment | SelfDistillation)
    labelling = stage.pseudo_labels
    if needs_labels != (labelling is not None):
        missing = "given: this objective trains on pseudo-labels"
        superfluous = "left out: this objective uses no pseudo-labels"
        problems.append(
            (f"{key}.pseudo_labels", f"must be {missing if needs_labels else superfluous}")
        )
    if needs_labels and number == 0:
        problem = "must not come first: no earlier stage can create its pseudo-labels"
        problems.append((f"{key}.objective", problem))
    if labelling is not None:
        for name in ("quantile", "cap"):
            value = getattr(labelling, name)
            require(problems, f"{key}.pseudo_labels.{name}", 0 <= value <= 1, "in [0, 1]", value)
    if (target := stage.target) is not None:
        low, high = target.scale
        rising = 0 < low <= high
        require(problems, f"{key}.target.scale", rising, "rising and above 0", (low, high))
        require(problems, f"{key}.target.batch", target.batch >= 1, "at least 1", target.batch)
        for name in ("resize", "crop"):
            size = getattr(target, name)
            if size is not None:
                require(problems, f"{key}.target.{name}", min(size) >= 1, "two sizes >= 1 px", size)
