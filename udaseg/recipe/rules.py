"""Checks what the types of a recipe cannot express: ranges, and settings that contradict."""

import re

from udaseg.recipe.contrast import Prototypes, Regional, Semantic
from udaseg.recipe.methods import (
    Adversarial,
    EntropyMinimization,
    Method,
    Objective,
    PrototypeAlignment,
    RunMethod,
    SelfDistillation,
    SelfTraining,
    SourceOnly,
    Staged,
    StageSpec,
    stage_ends,
)
from udaseg.recipe.schema import Domain, Expected, Machine, Model, Optimizer, Recipe

Problems = list[tuple[str, str]]
_DISCRIMINATOR_STRIDE = 32


def recipe_problems(recipe: Recipe) -> Problems:
    """Return (dotted key, what it must be) for every value that is out of range."""
    problems: Problems = []
    _run_problems(problems, recipe)
    _source_problems(problems, recipe.source, recipe.model.output_stride)
    _target_problems(problems, recipe.target, recipe.model.output_stride)
    _optimizer_problems(problems, recipe.optimizer)
    _model_problems(problems, recipe.model)
    _machine_problems(problems, recipe.machine)
    _unsuitable_machine_problems(problems, recipe)
    _expected_problems(problems, recipe.expected)
    _method_problems(problems, recipe.method, recipe.steps)
    _statistics_problems(problems, recipe)
    if isinstance(recipe.method, SelfTraining):
        _mixing_problems(problems, recipe, recipe.method)
    _crop_problems(problems, recipe)
    return problems


def _run_problems(problems: Problems, recipe: Recipe) -> None:
    valid = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", recipe.name) is not None
    _require(problems, "name", valid, "letters, digits, '.', '_' and '-'", repr(recipe.name))
    _require(problems, "seed", 0 <= recipe.seed < 2**31, "in [0, 2^31)", recipe.seed)
    _require(problems, "steps", recipe.steps >= 1, "at least 1", recipe.steps)
    _require(problems, "batch.source", recipe.batch.source >= 1, "at least 1", recipe.batch.source)
    _require(problems, "batch.target", recipe.batch.target >= 1, "at least 1", recipe.batch.target)


def _source_problems(problems: Problems, domain: Domain, stride: int) -> None:
    """Append the values of the source that are out of range, for a network of this stride."""
    _size_problems(problems, "source", domain, stride)
    rare, key = domain.rare_class, "source.rare_class"
    _require(problems, f"{key}.temperature", rare.temperature > 0, "above 0", rare.temperature)
    _require(problems, f"{key}.min_pixels", rare.min_pixels >= 1, "at least 1", rare.min_pixels)
    crop_pixels = domain.crop[0] * domain.crop[1]
    min_crop_pixels = rare.min_crop_pixels
    if domain.sampling == "rare_class":
        _require(
            problems,
            f"{key}.min_crop_pixels",
            min_crop_pixels <= crop_pixels,
            f"at most {crop_pixels}, the pixels of a crop",
            min_crop_pixels,
        )
    _require(
        problems, f"{key}.min_crop_pixels", min_crop_pixels >= 0, "at least 0", min_crop_pixels
    )


def _target_problems(problems: Problems, domain: Domain, stride: int) -> None:
    """Append the values of the target that are out of range, for a network of this stride."""
    _size_problems(problems, "target", domain, stride)
    is_uniform = domain.sampling == "uniform"
    must = "uniform, because the classes of target images are unknown"
    _require(problems, "target.sampling", is_uniform, must, domain.sampling)


def _size_problems(problems: Problems, section: str, domain: Domain, stride: int) -> None:
    for name in ("resize", "crop"):
        size = getattr(domain, name)
        if size is not None:
            _require(
                problems, f"{section}.{name}", min(size) >= 1, "two sizes of at least 1 px", size
            )
    shorter_side = min(domain.crop)
    _require(
        problems,
        f"{section}.crop",
        shorter_side >= stride,
        f"one cell ({stride} px) or more",
        shorter_side,
    )


def _optimizer_problems(problems: Problems, optimizer: Optimizer) -> None:
    for part in ("lr", "head_lr_mult", "backbone_lr_mult"):
        value = getattr(optimizer, part)
        _require(problems, f"optimizer.{part}", value > 0, "above 0", value)
    _require(
        problems, "optimizer.momentum", 0 <= optimizer.momentum < 1, "in [0, 1)", optimizer.momentum
    )
    _require(
        problems,
        "optimizer.weight_decay",
        optimizer.weight_decay >= 0,
        "at least 0",
        optimizer.weight_decay,
    )
    _require(problems, "optimizer.power", optimizer.power >= 0, "at least 0", optimizer.power)
    _require(problems, "optimizer.warmup", optimizer.warmup >= 0, "at least 0", optimizer.warmup)
    if optimizer.clip_norm is not None:
        _require(
            problems, "optimizer.clip_norm", optimizer.clip_norm > 0, "above 0", optimizer.clip_norm
        )


def _model_problems(problems: Problems, model: Model) -> None:
    _require(
        problems,
        "model.aspp_dilations",
        bool(model.aspp_dilations) and min(model.aspp_dilations, default=0) >= 1,
        "one or more dilations of at least 1",
        model.aspp_dilations,
    )
    _require(
        problems,
        "model.head_channels",
        model.head_channels >= 1,
        "at least 1",
        model.head_channels,
    )


def _machine_problems(problems: Problems, machine: Machine) -> None:
    """Append the values of `machine` that are out of range, independent of other sections."""
    _require(problems, "machine.workers", machine.workers >= -1, "at least -1", machine.workers)
    _require(problems, "machine.log_every", machine.log_every >= 1, "at least 1", machine.log_every)
    _require(
        problems,
        "machine.keep_checkpoints",
        machine.keep_checkpoints >= 2,
        "at least 2",
        machine.keep_checkpoints,
    )
    max_bad_steps = machine.max_bad_steps
    _require(problems, "machine.max_bad_steps", max_bad_steps >= 1, "at least 1", max_bad_steps)
    if machine.compile:
        compatible = not machine.activation_checkpointing
        must = "false with machine.activation_checkpointing: enable only one of them"
        _require(problems, "machine.compile", compatible, must, "true")
    for name in ("checkpoint_every", "validate_every", "worker_timeout", "preview_every"):
        value = getattr(machine, name)
        _require(problems, f"machine.{name}", value >= 0, "at least 0", value)


def _unsuitable_machine_problems(problems: Problems, recipe: Recipe) -> None:
    """Append settings of the machine that do not suit the batch or the method."""
    machine = recipe.machine
    micro_batches = machine.micro_batches
    even = (
        micro_batches >= 1
        and recipe.batch.source % micro_batches == recipe.batch.target % micro_batches == 0
    )
    must = "a divisor of batch.source and of batch.target"
    _require(problems, "machine.micro_batches", even, must, micro_batches)
    criterion_works = isinstance(recipe.method, SelfTraining) or machine.keep_best != "teacher"
    must = "another criterion, because the method has no teacher"
    _require(problems, "machine.keep_best", criterion_works, must, machine.keep_best)


def _expected_problems(problems: Problems, expected: Expected | None) -> None:
    if expected is not None:
        low, high = expected.miou
        rising = 0 <= low <= high <= 100
        _require(problems, "expected.miou", rising, "[LOWEST, HIGHEST] in percent", [low, high])


def _method_problems(problems: Problems, method: Method, steps: int) -> None:
    """Append the values of a method that are out of range."""
    images = method.target_statistics
    _require(problems, "method.target_statistics", images >= 0, "at least 0", images)
    if isinstance(method, Staged):
        _staged_problems(problems, method, steps)
    else:
        _objective_problems(problems, method, "method")


def _objective_problems(problems: Problems, method: Objective, key: str) -> None:
    match method:
        case SelfTraining():
            _self_training_problems(problems, method, key)
        case Adversarial():
            for name in ("temperature", "discriminator_lr"):
                value = getattr(method, name)
                _require(problems, f"{key}.{name}", value > 0, "above 0", value)
            _require(problems, f"{key}.weight", method.weight >= 0, "at least 0", method.weight)
        case EntropyMinimization():
            _require(problems, f"{key}.weight", method.weight >= 0, "at least 0", method.weight)
            if method.power is not None:
                _require(problems, f"{key}.power", method.power > 0, "above 0", method.power)
            if method.band is not None:
                band = method.band
                _require(problems, f"{key}.band", 0 <= band <= 0.5, "in [0, 0.5]", band)
        case PrototypeAlignment():
            _prototype_problems(problems, method.prototypes, f"{key}.prototypes")
        case SourceOnly() | SelfDistillation():
            pass


def _self_training_problems(problems: Problems, method: SelfTraining, key: str) -> None:
    augmentation = method.augmentation
    _require_fraction(problems, f"{key}.teacher.momentum", method.teacher.momentum)
    _require_fraction(problems, f"{key}.mixing.confidence", method.mixing.confidence)
    for name in ("jitter_probability", "blur_probability"):
        _require_fraction(problems, f"{key}.augmentation.{name}", getattr(augmentation, name))
    _require(
        problems,
        f"{key}.augmentation.jitter",
        0 <= augmentation.jitter <= 0.5,
        "in [0, 0.5] (hue turns at most half a circle)",
        augmentation.jitter,
    )
    low, high = augmentation.blur_sigma
    valid = 0 < low <= high <= 2
    must = "rising, above 0 and at most 2 px"
    _require(problems, f"{key}.augmentation.blur_sigma", valid, must, (low, high))
    _require(problems, f"{key}.mix_weight", method.mix_weight >= 0, "at least 0", method.mix_weight)
    if method.prototypes is not None:
        _prototype_problems(problems, method.prototypes, f"{key}.prototypes")
    if (semantic := method.semantic) is not None:
        _semantic_problems(problems, semantic, f"{key}.semantic")
        must = "used without regional, which has its own projector"
        _require(problems, f"{key}.semantic", method.regional is None, must, "both")
    if method.regional is not None:
        _regional_problems(problems, method.regional, f"{key}.regional")


def _regional_problems(problems: Problems, regional: Regional, key: str) -> None:
    _require_fraction(problems, f"{key}.min_confidence", regional.min_confidence)
    _require(problems, f"{key}.weight", regional.weight >= 0, ">= 0", regional.weight)
    _require(
        problems,
        f"{key}.temperature",
        regional.temperature > 0,
        "above 0",
        regional.temperature,
    )
    _require(problems, f"{key}.start", regional.start >= 0, ">= 0", regional.start)
    for name in ("bank_steps", "cells_per_view", "region_size"):
        value = getattr(regional, name)
        _require(problems, f"{key}.{name}", value >= 1, "at least 1", value)
    _require(
        problems,
        f"{key}.projector.channels",
        regional.projector.channels >= 1,
        "at least 1",
        regional.projector.channels,
    )


def _prototype_problems(problems: Problems, prototypes: Prototypes, key: str) -> None:
    momentum, temperature = prototypes.momentum, prototypes.temperature
    _require_fraction(problems, f"{key}.momentum", momentum)
    _require(problems, f"{key}.weight", prototypes.weight >= 0, ">= 0", prototypes.weight)
    _require_fraction(problems, f"{key}.min_confidence", prototypes.min_confidence)
    _require(problems, f"{key}.temperature", temperature > 0, "above 0", temperature)


def _semantic_problems(problems: Problems, semantic: Semantic, key: str) -> None:
    momentum, temperature = semantic.momentum, semantic.temperature
    _require_fraction(problems, f"{key}.momentum", momentum)
    _require(problems, f"{key}.temperature", temperature > 0, "above 0", temperature)
    _require(problems, f"{key}.weight", semantic.weight >= 0, "at least 0", semantic.weight)
    _require(problems, f"{key}.start", semantic.start >= 0, "at least 0", semantic.start)
    for name in ("bank_rows", "channels"):
        value = getattr(semantic, name)
        _require(problems, f"{key}.{name}", value >= 1, "at least 1", value)


def _staged_problems(problems: Problems, method: Staged, steps: int) -> None:
    stages = method.stages
    if not stages:
        problems.append(("method.stages", "must name at least one stage"))
        return
    total = sum(stage.share for stage in stages)
    _require(problems, "method.stages", abs(total - 1) < 1e-6, "shares that add up to 1", total)
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        key = f"method.stages[{number}]"
        valid = re.fullmatch(r"[a-z0-9_]+", stage.name) is not None
        _require(problems, f"{key}.name", valid, "a-z, 0-9 and '_'", repr(stage.name))
        unique = names.count(stage.name) == 1
        _require(problems, f"{key}.name", unique, "a unique name", repr(stage.name))
        _require(problems, f"{key}.share", stage.share > 0, "above 0", stage.share)
        _require(problems, f"{key}.lr_mult", stage.lr_mult > 0, "above 0", stage.lr_mult)
        schedule_stop = stage.schedule_stop
        _require(
            problems, f"{key}.schedule_stop", 0 < schedule_stop <= 1, "in (0, 1]", schedule_stop
        )
        if (jitter := stage.source_jitter) is not None:
            _require_fraction(problems, f"{key}.source_jitter.strength", jitter.strength)
            valid = 0 <= jitter.hue <= 0.5
            _require(problems, f"{key}.source_jitter.hue", valid, "in [0, 0.5]", jitter.hue)
        _unused_setting_problems(problems, stage, key)
        _stage_label_problems(problems, stage, number, key)
        _objective_problems(problems, stage.objective, f"{key}.objective")
    begin = 0
    for number, end in enumerate(stage_ends(method, steps)):
        if end <= begin and total > 0:
            shown = f"{steps}, which leaves no step for method.stages[{number}]"
            problems.append(("steps", f"must give each stage a step, got {shown}"))
        begin = end


def _unused_setting_problems(problems: Problems, stage: StageSpec, key: str) -> None:
    """Append settings for images that the stage does not use, or that belong to the whole run."""
    kind = stage.objective.kind
    if isinstance(stage.objective, RunMethod) and stage.objective.target_statistics:
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


def _stage_label_problems(problems: Problems, stage: StageSpec, number: int, key: str) -> None:
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
            _require_fraction(problems, f"{key}.pseudo_labels.{name}", getattr(labelling, name))
    if (target := stage.target) is not None:
        low, high = target.scale
        rising = 0 < low <= high
        _require(problems, f"{key}.target.scale", rising, "rising and above 0", (low, high))
        _require(problems, f"{key}.target.batch", target.batch >= 1, "at least 1", target.batch)
        for name in ("resize", "crop"):
            size = getattr(target, name)
            if size is not None:
                _require(
                    problems, f"{key}.target.{name}", min(size) >= 1, "two sizes >= 1 px", size
                )


def _statistics_problems(problems: Problems, recipe: Recipe) -> None:
    """Append an error if target statistics are used with frozen batch norms."""
    method, norms = recipe.method, recipe.model.batch_norm
    if isinstance(method, Staged) and method.stages and method.stages[-1].batch_norm is not None:
        norms = method.stages[-1].batch_norm
    if method.target_statistics > 0 and norms == "frozen":
        problem = (
            "must be 0: batch_norm is frozen, so its weights were learned for other statistics"
        )
        problems.append(("method.target_statistics", problem))


def _mixing_problems(problems: Problems, recipe: Recipe, method: SelfTraining) -> None:
    """Append batch and crop sizes that prevent ClassMix, and regions larger than the crop."""
    if recipe.batch.source != recipe.batch.target:
        problems.append(
            (
                "batch.target",
                "must equal batch.source: ClassMix pastes one source image onto each target "
                f"image, got {recipe.batch.target} and {recipe.batch.source}",
            )
        )
    if recipe.source.crop != recipe.target.crop:
        same = "the same as source.crop: source pixels are pasted onto target images"
        _require(problems, "target.crop", False, same, recipe.target.crop)
    if (regional := method.regional) is not None:
        side = regional.region_size * recipe.model.output_stride
        least = min(recipe.source.crop)
        fits = f"at most {least // recipe.model.output_stride} cells, the crop's shorter side"
        key = "method.regional.region_size"
        _require(problems, key, side <= least, fits, regional.region_size)


def _crop_problems(problems: Problems, recipe: Recipe) -> None:
    """Append crops that are too small for the network or the discriminator."""
    parts: list[tuple[str, str, tuple[int, int] | None]] = [("", recipe.method.kind, None)]
    if isinstance(recipe.method, Staged):
        parts = [
            (
                f"method.stages[{number}].target.crop",
                stage.objective.kind,
                None if stage.target is None else stage.target.crop,
            )
            for number, stage in enumerate(recipe.method.stages)
        ]
    for key, kind, stage_crop in parts:
        if stage_crop is not None:
            cell = recipe.model.output_stride
            _require(
                problems, key, min(stage_crop) >= cell, f"at least {cell} px, one cell", stage_crop
            )
        if kind == "adversarial":
            target = (
                ("target.crop", recipe.target.crop) if stage_crop is None else (key, stage_crop)
            )
            for name, crop in (("source.crop", recipe.source.crop), target):
                must = f"at least {_DISCRIMINATOR_STRIDE} px a side, one cell of the discriminator"
                _require(problems, name, min(crop) >= _DISCRIMINATOR_STRIDE, must, crop)


def _require(problems: Problems, key: str, holds: bool, must: str, value: object) -> None:
    """Append `key` with what its value must be, unless `holds`."""
    if not holds:
        problems.append((key, f"must be {must}, got {value}"))


def _require_fraction(problems: Problems, key: str, value: float) -> None:
    _require(problems, key, 0 <= value <= 1, "in [0, 1]", value)
