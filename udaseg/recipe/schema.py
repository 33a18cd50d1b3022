"""What a recipe may say: frozen dataclasses, one a section. Imports no torch.

A field without a default must be written in the recipe, because it changes a number. Fields with a
default either belong to the machine or switch a part off. Ranges that a type cannot say are checked
in `problems`, which names every fault of the recipe at once.
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
    """Labelled images that are scored and read by people; they select nothing.

    Attributes:
        data: A prepared name or a dataset YAML; null scores nothing.
        split: The split to score.
        resize: (height, width) of the network's input; null keeps each file's size.
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
        output_stride: Pixels of input a cell of the last feature map: 8, 16 or 32.
        weights: `imagenet`, `random`, or a file (safetensors or a state dict).
        batch_norm: `train`; `affine_frozen` (statistics follow, scale and shift stay);
            `frozen` (both stay).
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
    """The optimiser and its learning rate, a function of the step.

    Attributes:
        kind: sgd or adamw.
        lr: Learning rate of the backbone.
        head_lr_mult: Factor of `lr` for head and projector.
        backbone_lr_mult: Factor of `lr` for the backbone.
        momentum: Momentum of SGD, beta 1 of AdamW.
        weight_decay: As the optimiser defines it.
        power: The rate falls as (1 - step/steps) ** power.
        warmup: Steps of linear rise from zero before that.
        clip_norm: Largest gradient norm; null does not clip.
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
    """Images a step, in each process."""

    source: int
    target: int


@dataclass(frozen=True)
class Expected:
    """What a run should come to; `udaseg verify` checks it. Overrides of numbers drop it.

    Attributes:
        miou: Lowest and highest mIoU of the final score, in percent.
    """

    miou: tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """One whole run.

    Attributes:
        name: Names the run folder.
        seed: All randomness is drawn from it, the step, and the image's number.
        steps: Optimiser steps.
        source: Labelled images.
        target: Unlabelled images; their labels are never read.
        validation: What is scored at the end.
        model: The network.
        optimizer: Optimiser and learning rate.
        batch: Images a step.
        method: What is minimised.
        machine: What changes speed only.
        expected: Where the final score should lie, once that is known.
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
    """Return every value out of range as (dotted key, what it must be); empty when all is well."""
    found: Found = []
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", recipe.name) is not None
    require(found, "name", plain, "letters, digits, '.', '_' and '-'", repr(recipe.name))
    require(found, "seed", 0 <= recipe.seed < 2**31, "in [0, 2^31)", recipe.seed)
    require(found, "steps", recipe.steps >= 1, "at least 1", recipe.steps)
    require(found, "batch.source", recipe.batch.source >= 1, "at least 1", recipe.batch.source)
    require(found, "batch.target", recipe.batch.target >= 1, "at least 1", recipe.batch.target)
    source_problems(found, recipe.source, recipe.model.output_stride)
    target_problems(found, recipe.target, recipe.model.output_stride)
    optimizer = recipe.optimizer
    for part in ("lr", "head_lr_mult", "backbone_lr_mult"):
        value = getattr(optimizer, part)
        require(found, f"optimizer.{part}", value > 0, "above 0", value)
    require(
        found, "optimizer.momentum", 0 <= optimizer.momentum < 1, "in [0, 1)", optimizer.momentum
    )
    require(
        found,
        "optimizer.weight_decay",
        optimizer.weight_decay >= 0,
        "at least 0",
        optimizer.weight_decay,
    )
    require(found, "optimizer.power", optimizer.power >= 0, "at least 0", optimizer.power)
    require(found, "optimizer.warmup", optimizer.warmup >= 0, "at least 0", optimizer.warmup)
    if optimizer.clip_norm is not None:
        require(
            found, "optimizer.clip_norm", optimizer.clip_norm > 0, "above 0", optimizer.clip_norm
        )
    require(
        found,
        "model.aspp_dilations",
        bool(recipe.model.aspp_dilations) and min(recipe.model.aspp_dilations, default=0) >= 1,
        "one or more dilations of at least 1",
        recipe.model.aspp_dilations,
    )
    require(
        found,
        "model.head_channels",
        recipe.model.head_channels >= 1,
        "at least 1",
        recipe.model.head_channels,
    )
    machine = recipe.machine
    machine_problems(found, machine)
    parts = machine.micro_batches
    even = parts >= 1 and recipe.batch.source % parts == recipe.batch.target % parts == 0
    both = "a divisor of batch.source and of batch.target"
    require(found, "machine.micro_batches", even, both, parts)
    taught = isinstance(recipe.method, SelfTraining) or machine.keep_best != "teacher"
    other = "another criterion, as the method has no teacher"
    require(found, "machine.keep_best", taught, other, machine.keep_best)
    if recipe.expected is not None:
        low, high = recipe.expected.miou
        rising = 0 <= low <= high <= 100
        require(found, "expected.miou", rising, "[LOWEST, HIGHEST] in percent", [low, high])
    method_problems(found, recipe.method, recipe.steps)
    _statistics_problems(found, recipe)
    if isinstance(recipe.method, SelfTraining):
        _mixing_problems(found, recipe, recipe.method)
    _crop_problems(found, recipe)
    return found


def _statistics_problems(found: Found, recipe: Recipe) -> None:
    """List batch norms that target statistics cannot enter."""
    method, norms = recipe.method, recipe.model.batch_norm
    if isinstance(method, Staged) and method.stages and method.stages[-1].batch_norm is not None:
        norms = method.stages[-1].batch_norm
    if method.target_statistics > 0 and norms == "frozen":
        what = "must be 0: batch_norm is frozen, so its weights were learned for other statistics"
        found.append(("method.target_statistics", what))


def _crop_problems(found: Found, recipe: Recipe) -> None:
    """List crops that are too small for what a part of the run does with them."""
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
    for where, kind, own in parts:
        if own is not None:
            cell = recipe.model.output_stride
            require(found, where, min(own) >= cell, f"at least {cell} px, one cell", own)
        if kind == "adversarial":
            target = ("target.crop", recipe.target.crop) if own is None else (where, own)
            for name, crop in (("source.crop", recipe.source.crop), target):
                must = f"at least {_DISCRIMINATOR_STRIDE} px a side, one cell of the discriminator"
                require(found, name, min(crop) >= _DISCRIMINATOR_STRIDE, must, crop)


def _mixing_problems(found: Found, recipe: Recipe, method: SelfTraining) -> None:
    """List what keeps source pixels from being pasted onto target images, or regions from cells."""
    if recipe.batch.source != recipe.batch.target:
        found.append(
            (
                "batch.target",
                "must equal batch.source: ClassMix pastes one source image onto each target "
                f"image, got {recipe.batch.target} and {recipe.batch.source}",
            )
        )
    if recipe.source.crop != recipe.target.crop:
        same = "the same as source.crop: source pixels are pasted onto target images"
        require(found, "target.crop", False, same, recipe.target.crop)
    if (regional := method.regional) is not None:
        side = regional.region_size * recipe.model.output_stride
        least = min(recipe.source.crop)
        fits = f"at most {least // recipe.model.output_stride} cells, the crop's shorter side"
        where = "method.regional.region_size"
        require(found, where, side <= least, fits, regional.region_size)
