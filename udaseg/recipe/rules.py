"""Checks what settings of a recipe must fulfil together. Bounds of one field are at the field."""

from udaseg.recipe.methods import (
    Method,
    PrototypeAlignment,
    RunMethod,
    SelfDistillation,
    SelfTraining,
    Staged,
    StageSpec,
    regularizer_specs,
    stage_ends,
)
from udaseg.recipe.schema import Domain, Recipe

Problems = list[tuple[str, str]]
_DISCRIMINATOR_STRIDE = 32


def recipe_problems(recipe: Recipe) -> Problems:
    """Return (dotted key, what it must be) for every value that contradicts another one."""
    problems: Problems = []
    _domain_problems(problems, recipe)
    _machine_problems(problems, recipe)
    if recipe.expected is not None:
        _require_rising(problems, "expected.miou", recipe.expected.miou)
    _method_problems(problems, recipe.method, recipe.steps)
    _statistics_problems(problems, recipe)
    if isinstance(recipe.method, SelfTraining):
        _mixing_problems(problems, recipe, recipe.method)
    _crop_problems(problems, recipe)
    return problems


def _domain_problems(problems: Problems, recipe: Recipe) -> None:
    """Append crops and sampling that do not suit the network or the domain."""
    _cell_problems(problems, "source", recipe.source, recipe.model.output_stride)
    crop_pixels = recipe.source.crop[0] * recipe.source.crop[1]
    if recipe.source.sampling == "rare_class":
        least = recipe.source.rare_class.min_crop_pixels
        must = f"at most {crop_pixels}, the pixels of a crop"
        key = "source.rare_class.min_crop_pixels"
        _require(problems, key, least <= crop_pixels, must, least)
    _cell_problems(problems, "target", recipe.target, recipe.model.output_stride)
    sampling = recipe.target.sampling
    must = "uniform, because the classes of target images are unknown"
    _require(problems, "target.sampling", sampling == "uniform", must, sampling)


def _cell_problems(problems: Problems, section: str, domain: Domain, stride: int) -> None:
    shorter_side = min(domain.crop)
    must = f"one cell ({stride} px) or more"
    _require(problems, f"{section}.crop", shorter_side >= stride, must, shorter_side)


def _machine_problems(problems: Problems, recipe: Recipe) -> None:
    """Append settings of the machine that do not suit each other, the batch or the method."""
    machine = recipe.machine
    if machine.compile:
        compatible = not machine.activation_checkpointing
        must = "false with machine.activation_checkpointing: enable only one of them"
        _require(problems, "machine.compile", compatible, must, "true")
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


def _method_problems(problems: Problems, method: Method, steps: int) -> None:
    if isinstance(method, Staged):
        _staged_problems(problems, method, steps)
    elif isinstance(method, SelfTraining):
        sigma = method.augmentation.blur_sigma
        _require_rising(problems, "method.augmentation.blur_sigma", sigma)
        _projector_problems(problems, method)


def _projector_problems(problems: Problems, method: SelfTraining) -> None:
    """Append every regularizer that needs a projector when another one has it already."""
    specs = regularizer_specs(method)
    projecting = [name for name in specs if getattr(specs[name], "projector", None) is not None]
    for name in projecting[1:]:
        key = f"regularizers.{name}" if name in method.regularizers else name
        must = f"used without {projecting[0]}, which has its own projector"
        _require(problems, f"method.{key}", False, must, "both")


def _staged_problems(problems: Problems, method: Staged, steps: int) -> None:
    stages = method.stages
    if not stages:
        return
    total = sum(stage.share for stage in stages)
    _require(problems, "method.stages", abs(total - 1) < 1e-6, "shares that add up to 1", total)
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        key = f"method.stages[{number}]"
        unique = names.count(stage.name) == 1
        _require(problems, f"{key}.name", unique, "a unique name", repr(stage.name))
        _unused_setting_problems(problems, stage, key)
        _stage_label_problems(problems, stage, number, key)
        if stage.target is not None:
            _require_rising(problems, f"{key}.target.scale", stage.target.scale)
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


def _require_rising(problems: Problems, key: str, pair: tuple[float, float]) -> None:
    _require(problems, key, pair[0] <= pair[1], "[LOWEST, HIGHEST]", list(pair))
