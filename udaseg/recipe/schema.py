"""What a recipe may say: frozen dataclasses, one a section. Imports no torch.

A field without a default must be written in the recipe, because it changes a number. Fields with a
default either belong to the machine or switch a part off. Ranges that a type cannot say are checked
in `problems`, which names every fault of the recipe at once.
"""

import re
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Domain:
    """Images of one domain and how they are cut for training.

    Attributes:
        data: A prepared name, a dataset YAML, or (target only) a plain folder of images.
        split: The split to read.
        resize: (height, width) in pixels; null keeps each file's size.
        crop: (height, width) of the random crop; a smaller labelled image is padded with ignored
            pixels, a smaller unlabelled one is enlarged.
        flip: Mirror left-right with probability 1/2.
    """

    data: str
    split: str
    resize: tuple[int, int] | None
    crop: tuple[int, int]
    flip: bool


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
class Teacher:
    """The mean teacher.

    Attributes:
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        batch_statistics: Normalise by the batch (as DACS released it) instead of by the
            student's running statistics.
    """

    momentum: float
    batch_statistics: bool


@dataclass(frozen=True)
class StrongAugmentation:
    """Colour jitter and blur of what the student sees mixed.

    Attributes:
        jitter: Strength of brightness, contrast, saturation and hue.
        jitter_probability: Chance of jitter, an image.
        blur_probability: Chance of blur, an image.
        blur_sigma: Range of the Gaussian's standard deviation in pixels.
    """

    jitter: float
    jitter_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float]


@dataclass(frozen=True)
class Mixing:
    """ClassMix of source onto target.

    Attributes:
        ignore_is_class: Void counts as a class that may be pasted (as DACS released it).
        confidence: A target pixel is confident at or above this probability; the share of
            confident pixels weighs all target pixels.
        share_over: That share is taken over the whole `batch` (as released) or each `image`.
    """

    ignore_is_class: bool
    confidence: float
    share_over: Literal["batch", "image"]


@dataclass(frozen=True)
class Projector:
    """The projection head in front of a contrastive loss.

    Attributes:
        channels: Dimension of the embedding.
        trainable: False leaves it at its random start (as RCCR was released).
    """

    channels: int
    trainable: bool


@dataclass(frozen=True)
class Regional:
    """RCCR's region-wise contrast.

    Attributes:
        weight: Weight of the loss at the last step.
        ramp: Rise to it as exp(-5 (1 - sqrt(step/steps))); false is constant.
        start: First step with contrast.
        temperature: Softmax temperature.
        min_confidence: Anchors need a teacher confidence above this.
        bank_steps: Steps that the memory bank spans.
        cells_per_view: Random cells of each view that a step puts into the bank.
        region_size: Side of a region in cells, average-pooled; 1 as released.
        square_per: One CutMix square a `batch` (as released) or an `image`.
        keep_ignored: Ignored cells enter the bank, as negatives of everything (as released).
        negative_sampling: Drop bank rows of the anchor's class (false only to ablate).
        positive_filtering: Drop anchors of low confidence (false only to ablate).
        momentum_head: Keys come from the teacher's head; false uses the student's (to ablate).
        projector: The projection head.
    """

    weight: float
    ramp: bool
    start: int
    temperature: float
    min_confidence: float
    bank_steps: int
    cells_per_view: int
    region_size: int
    square_per: Literal["image", "batch"]
    keep_ignored: bool
    projector: Projector
    negative_sampling: bool = True
    positive_filtering: bool = True
    momentum_head: bool = True


@dataclass(frozen=True)
class Prototypes:
    """SPCL's prototype contrast as a term of self-training.

    Attributes:
        weight: Weight of the term.
        temperature: Softmax temperature.
        momentum: Share of a prototype that stays at an update.
        absent: The prototype of a class that is not in the batch is `keep` or `fade` (as released).
        normalise: Scale prototypes to unit length after an update (the release does not).
    """

    weight: float
    temperature: float
    momentum: float
    absent: Literal["keep", "fade"]
    normalise: bool


@dataclass(frozen=True)
class SourceOnly:
    """Supervised training on the source, nothing else: the baseline to beat."""

    kind: Literal["source_only"]


@dataclass(frozen=True)
class SelfTraining:
    """Mean-teacher self-training with ClassMix (DACS), plus the regularizers that are named.

    Attributes:
        mix_weight: Weight of the loss on the mixed image.
        regional: RCCR's contrast; leave it out for plain DACS.
        prototypes: SPCL's contrast; may stand beside the regional one.
    """

    kind: Literal["self_training"]
    teacher: Teacher
    mixing: Mixing
    augmentation: StrongAugmentation
    mix_weight: float
    regional: Regional | None = None
    prototypes: Prototypes | None = None


Method = SourceOnly | SelfTraining


@dataclass(frozen=True)
class Machine:
    """What changes speed, not numbers (up to rounding).

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16 (autocast; losses stay fp32).
        workers: Loader processes; -1 chooses by the machine.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints; 0 writes only the last.
        keep_checkpoints: Newest checkpoints to keep, at least 2.
        validate_every: Steps between two scores on the validation split; 0 scores at the end.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = -1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 0


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


def _require(
    found: list[tuple[str, str]], where: str, holds: bool, must: str, value: object
) -> None:
    if not holds:
        found.append((where, f"must be {must}, got {value}"))


def _domain_problems(found: list[tuple[str, str]], name: str, domain: Domain, stride: int) -> None:
    for part in ("resize", "crop"):
        size = getattr(domain, part)
        if size is not None:
            _require(found, f"{name}.{part}", min(size) >= 1, "two sizes of at least 1 px", size)
    least = min(domain.crop)
    _require(found, f"{name}.crop", least >= stride, f"one cell ({stride} px) or more", least)


def _self_training_problems(found: list[tuple[str, str]], method: SelfTraining) -> None:
    def unit(where: str, value: float) -> None:
        _require(found, f"method.{where}", 0 <= value <= 1, "in [0, 1]", value)

    unit("teacher.momentum", method.teacher.momentum)
    unit("mixing.confidence", method.mixing.confidence)
    unit("augmentation.jitter_probability", method.augmentation.jitter_probability)
    unit("augmentation.blur_probability", method.augmentation.blur_probability)
    _require(
        found,
        "method.augmentation.jitter",
        0 <= method.augmentation.jitter <= 0.5,
        "in [0, 0.5] (hue turns at most half a circle)",
        method.augmentation.jitter,
    )
    low, high = method.augmentation.blur_sigma
    sigmas = 0 < low <= high <= 2
    must = "rising, above 0 and at most 2 px"
    _require(found, "method.augmentation.blur_sigma", sigmas, must, (low, high))
    _require(found, "method.mix_weight", method.mix_weight >= 0, "at least 0", method.mix_weight)
    if (prototypes := method.prototypes) is not None:
        unit("prototypes.momentum", prototypes.momentum)
        _require(
            found, "method.prototypes.weight", prototypes.weight >= 0, ">= 0", prototypes.weight
        )
        tau = prototypes.temperature
        _require(found, "method.prototypes.temperature", tau > 0, "above 0", tau)
    if (regional := method.regional) is not None:
        unit("regional.min_confidence", regional.min_confidence)
        _require(found, "method.regional.weight", regional.weight >= 0, ">= 0", regional.weight)
        _require(
            found,
            "method.regional.temperature",
            regional.temperature > 0,
            "above 0",
            regional.temperature,
        )
        _require(found, "method.regional.start", regional.start >= 0, ">= 0", regional.start)
        for part in ("bank_steps", "cells_per_view", "region_size"):
            value = getattr(regional, part)
            _require(found, f"method.regional.{part}", value >= 1, "at least 1", value)
        _require(
            found,
            "method.regional.projector.channels",
            regional.projector.channels >= 1,
            "at least 1",
            regional.projector.channels,
        )


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """Return every value out of range as (dotted key, what it must be); empty when all is well."""
    found: list[tuple[str, str]] = []
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", recipe.name) is not None
    _require(found, "name", plain, "letters, digits, '.', '_' and '-'", repr(recipe.name))
    _require(found, "seed", 0 <= recipe.seed < 2**31, "in [0, 2^31)", recipe.seed)
    _require(found, "steps", recipe.steps >= 1, "at least 1", recipe.steps)
    _require(found, "batch.source", recipe.batch.source >= 1, "at least 1", recipe.batch.source)
    _require(found, "batch.target", recipe.batch.target >= 1, "at least 1", recipe.batch.target)
    _domain_problems(found, "source", recipe.source, recipe.model.output_stride)
    _domain_problems(found, "target", recipe.target, recipe.model.output_stride)
    optimizer = recipe.optimizer
    for part in ("lr", "head_lr_mult", "backbone_lr_mult"):
        value = getattr(optimizer, part)
        _require(found, f"optimizer.{part}", value > 0, "above 0", value)
    _require(
        found, "optimizer.momentum", 0 <= optimizer.momentum < 1, "in [0, 1)", optimizer.momentum
    )
    _require(
        found,
        "optimizer.weight_decay",
        optimizer.weight_decay >= 0,
        "at least 0",
        optimizer.weight_decay,
    )
    _require(found, "optimizer.power", optimizer.power >= 0, "at least 0", optimizer.power)
    _require(found, "optimizer.warmup", optimizer.warmup >= 0, "at least 0", optimizer.warmup)
    if optimizer.clip_norm is not None:
        _require(
            found, "optimizer.clip_norm", optimizer.clip_norm > 0, "above 0", optimizer.clip_norm
        )
    _require(
        found,
        "model.aspp_dilations",
        bool(recipe.model.aspp_dilations) and min(recipe.model.aspp_dilations, default=0) >= 1,
        "one or more dilations of at least 1",
        recipe.model.aspp_dilations,
    )
    _require(
        found,
        "model.head_channels",
        recipe.model.head_channels >= 1,
        "at least 1",
        recipe.model.head_channels,
    )
    machine = recipe.machine
    _require(found, "machine.workers", machine.workers >= -1, "at least -1", machine.workers)
    _require(found, "machine.log_every", machine.log_every >= 1, "at least 1", machine.log_every)
    _require(
        found,
        "machine.keep_checkpoints",
        machine.keep_checkpoints >= 2,
        "at least 2",
        machine.keep_checkpoints,
    )
    for part in ("checkpoint_every", "validate_every"):
        value = getattr(machine, part)
        _require(found, f"machine.{part}", value >= 0, "at least 0", value)
    if recipe.method.kind == "self_training":
        assert isinstance(recipe.method, SelfTraining)
        _self_training_problems(found, recipe.method)
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
            _require(found, "target.crop", False, same, recipe.target.crop)
        if (regional := recipe.method.regional) is not None:
            side = regional.region_size * recipe.model.output_stride
            least = min(recipe.source.crop)
            fits = f"at most {least // recipe.model.output_stride} cells, the crop's shorter side"
            where = "method.regional.region_size"
            _require(found, where, side <= least, fits, regional.region_size)
    return found
