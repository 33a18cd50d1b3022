"""The schema of a recipe: one frozen dataclass per section. Does not import torch.

A field without a default must be written in the recipe, because it changes the numbers. A field
with a default either belongs to the machine or disables a part. `problems` checks ranges that a
type cannot express, and reports all errors of the recipe at once.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.domain import Domain, source_problems, target_problems
from udaseg.recipe.machine import Machine, machine_problems
from udaseg.recipe.method import Method, SelfTraining, Staged
from udaseg.recipe.method_checks import Found, method_problems, require

_DISCRIMINATOR_STRIDE = 32


@dataclass(frozen=True)
class Validation:
    """Labelled images to score, for reporting only; never used for selection.

    Attributes:
        data: Name of a prepared data set, or dataset YAML; null disables validation.
        split: The split to score.
        resize: (height, width) of the network's input; null keeps the size of each file.
    """

    data: str | None
    split: str = "val"
    resize: tuple[int, int] | None = None


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        backbone: resnet18, resnet50, resnet101, mobilenet_v2, mobilenet_v3_large,
            efficientnet_lite0 (extra), or `timm:NAME` (extra).
        output_stride: Input pixels per cell of the last feature map: 8, 16 or 32.
        weights: `imagenet`, `random`, or a file (safetensors or a state dict).
        batch_norm: `train`, `affine_frozen` (statistics are updated, scale and shift are not) or
            `frozen` (neither is updated).
        head: deeplab_v2 or deeplab_v3plus.
        aspp_dilations: Dilations of the head's 3x3 convolutions.
        head_channels: Width of the DeepLab-v3+ head; unused by DeepLab-v2.
    """

    backbone: str
    output_stride: Literal[8, 16, 32]
    weights: str
    batch_norm: Literal["train", "affine_frozen", "frozen"]
    head: Literal["deeplab_v2", "deeplab_v3plus"]
    aspp_dilations: tuple[int, ...]
    head_channels: int = 256


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and the schedule of its learning rate.

    Attributes:
        kind: sgd or adamw.
        lr: Learning rate of the backbone.
        head_lr_mult: Factor of `lr` for head and projector.
        backbone_lr_mult: Factor of `lr` for the backbone.
        momentum: Momentum of SGD, beta 1 of AdamW.
        weight_decay: As defined by the optimizer.
        power: The rate falls as (1 - step/steps) ** power.
        warmup: Steps of linear increase from zero before that.
        clip_norm: Maximum gradient norm; null does not clip.
    """

    kind: Literal["sgd", "adamw"]
    lr: float
    head_lr_mult: float
    backbone_lr_mult: float
    momentum: float
    weight_decay: float
    power: float
    warmup: int = 0
    clip_norm: float | None = None


@dataclass(frozen=True)
class BatchSize:
    """Images per step, in each process."""

    source: int
    target: int


@dataclass(frozen=True)
class Expected:
    """Expected results, checked by `udaseg verify`. Overrides that change the numbers drop them.

    Attributes:
        miou: Lowest and highest mIoU of the final score, in percent.
    """

    miou: tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """All settings of one run.

    Attributes:
        name: Name of the run folder.
        seed: All randomness is derived from it, the step and the index of the image.
        steps: Number of optimizer steps.
        source: Labelled images.
        target: Unlabelled images; their labels are never read.
        validation: Images that are scored at the end.
        model: The network.
        optimizer: Optimizer and learning rate.
        batch: Images per step.
        method: Training method.
        machine: Settings that only change speed.
        expected: Expected final score, if known.
    """

    name: str
    seed: int
    steps: int
    source: Domain
    target: Domain
    validation: Validation
    model: Model
    optimizer: Optimizer
    batch: BatchSize
    method: Method
    machine: Machine = field(default_factory=Machine)
    expected: Expected | None = None


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (dotted key, what it must be) for every value that is out of range."""
    problems: Found = []
    valid = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", recipe.name) is not None
    require(problems, "name", valid, "letters, digits, '.', '_' and '-'", repr(recipe.name))
    require(problems, "seed", 0 <= recipe.seed < 2**31, "in [0, 2^31)", recipe.seed)
    require(problems, "steps", recipe.steps >= 1, "at least 1", recipe.steps)
    require(problems, "batch.source", recipe.batch.source >= 1, "at least 1", recipe.batch.source)
    require(problems, "batch.target", recipe.batch.target >= 1, "at least 1", recipe.batch.target)
    source_problems(problems, recipe.source, recipe.model.output_stride)
    target_problems(problems, recipe.target, recipe.model.output_stride)
    optimizer = recipe.optimizer
    for part in ("lr", "head_lr_mult", "backbone_lr_mult"):
        value = getattr(optimizer, part)
        require(problems, f"optimizer.{part}", value > 0, "above 0", value)
    require(
        problems, "optimizer.momentum", 0 <= optimizer.momentum < 1, "in [0, 1)", optimizer.momentum
    )
    require(
        problems,
        "optimizer.weight_decay",
        optimizer.weight_decay >= 0,
        "at least 0",
        optimizer.weight_decay,
    )
    require(problems, "optimizer.power", optimizer.power >= 0, "at least 0", optimizer.power)
    require(problems, "optimizer.warmup", optimizer.warmup >= 0, "at least 0", optimizer.warmup)
    if optimizer.clip_norm is not None:
        require(
            problems, "optimizer.clip_norm", optimizer.clip_norm > 0, "above 0", optimizer.clip_norm
        )
    require(
        problems,
        "model.aspp_dilations",
        bool(recipe.model.aspp_dilations) and min(recipe.model.aspp_dilations, default=0) >= 1,
        "one or more dilations of at least 1",
        recipe.model.aspp_dilations,
    )
    require(
        problems,
        "model.head_channels",
        recipe.model.head_channels >= 1,
        "at least 1",
        recipe.model.head_channels,
    )
    machine = recipe.machine
    machine_problems(problems, machine)
    micro_batches = machine.micro_batches
    even = (
        micro_batches >= 1
        and recipe.batch.source % micro_batches == recipe.batch.target % micro_batches == 0
    )
    must = "a divisor of batch.source and of batch.target"
    require(problems, "machine.micro_batches", even, must, micro_batches)
    criterion_works = isinstance(recipe.method, SelfTraining) or machine.keep_best != "teacher"
    must = "another criterion, because the method has no teacher"
    require(problems, "machine.keep_best", criterion_works, must, machine.keep_best)
    if recipe.expected is not None:
        low, high = recipe.expected.miou
        rising = 0 <= low <= high <= 100
        require(problems, "expected.miou", rising, "[LOWEST, HIGHEST] in percent", [low, high])
    method_problems(problems, recipe.method, recipe.steps)
    _statistics_problems(problems, recipe)
    if isinstance(recipe.method, SelfTraining):
        _mixing_problems(problems, recipe, recipe.method)
    _crop_problems(problems, recipe)
    return problems


def _statistics_problems(problems: Found, recipe: Recipe) -> None:
    """Append an error if target statistics are used with frozen batch norms."""
    method, norms = recipe.method, recipe.model.batch_norm
    if isinstance(method, Staged) and method.stages and method.stages[-1].batch_norm is not None:
        norms = method.stages[-1].batch_norm
    if method.target_statistics > 0 and norms == "frozen":
        problem = (
            "must be 0: batch_norm is frozen, so its weights were learned for other statistics"
        )
        problems.append(("method.target_statistics", problem))


def _crop_problems(problems: Found, recipe: Recipe) -> None:
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
            require(
                problems, key, min(stage_crop) >= cell, f"at least {cell} px, one cell", stage_crop
            )
        if kind == "adversarial":
            target = (
                ("target.crop", recipe.target.crop) if stage_crop is None else (key, stage_crop)
            )
            for name, crop in (("source.crop", recipe.source.crop), target):
                must = f"at least {_DISCRIMINATOR_STRIDE} px a side, one cell of the discriminator"
                require(problems, name, min(crop) >= _DISCRIMINATOR_STRIDE, must, crop)


def _mixing_problems(problems: Found, recipe: Recipe, method: SelfTraining) -> None:
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
        require(problems, "target.crop", False, same, recipe.target.crop)
    if (regional := method.regional) is not None:
        side = regional.region_size * recipe.model.output_stride
        least = min(recipe.source.crop)
        fits = f"at most {least // recipe.model.output_stride} cells, the crop's shorter side"
        key = "method.regional.region_size"
        require(problems, key, side <= least, fits, regional.region_size)
