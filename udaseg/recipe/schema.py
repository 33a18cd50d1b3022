"""The schema of a recipe: one frozen dataclass per section. Does not import torch.

A field without a default must be written in the recipe, because it changes the numbers. A field
with a default either belongs to the machine or disables a part. `recipe_problems` checks
ranges that a type cannot express, and reports all errors of the recipe at once.
"""

from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.methods import Method


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
class RareClass:
    """Settings of `sampling: rare_class`; the defaults are those of DAFormer.

    Attributes:
        temperature: Classes are drawn by the softmax of (1 - f) / temperature, where f is the pixel
            share of the class.
        min_pixels: Minimum pixels of the class in an image drawn for it, at the original size.
        min_crop_pixels: Minimum pixels of the class in its crop, after `resize`.
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_pixels: int = 1500


@dataclass(frozen=True)
class Domain:
    """Images of one domain and how they are cut for training.

    Attributes:
        data: Name of a prepared data set, dataset YAML, or (target only) a folder of images.
        split: The split to read.
        resize: (height, width) in pixels; null keeps the size of each file.
        crop: (height, width) of the random crop. A labelled image that is smaller is padded with
            ignored pixels; an unlabelled one is enlarged.
        flip: Mirror left-right with probability 1/2.
        sampling: How images are sampled: `uniform`; for a source also `class_balanced` (by
            image-level class counts, as in SPCL) and `rare_class` (as in DAFormer). A stage can
            override it.
        rare_class: Settings of `rare_class`.
    """

    data: str
    split: str
    resize: tuple[int, int] | None
    crop: tuple[int, int]
    flip: bool
    sampling: Literal["uniform", "class_balanced", "rare_class"] = "uniform"
    rare_class: RareClass = field(default_factory=RareClass)


@dataclass(frozen=True)
class Machine:
    """Settings that do not change the numbers, except for rounding.

    `precision` and `micro_batches` change them more than by rounding.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16 (autocast; losses stay fp32).
        workers: Loader processes; -1 chooses automatically.
        log_every: Steps between metric log lines.
        checkpoint_every: Steps between checkpoints; 0 writes only the last.
        keep_checkpoints: Number of newest checkpoints to keep, at least 2.
        validate_every: Steps between validations; 0 validates only at the end.
        micro_batches: Number of micro-batches of a step, to save memory; batch norm normalises
            each by itself. `--fit` sets it.
        max_bad_steps: A step that is not finite is skipped; this many in a row end the run.
        on_bad_sample: For an image that cannot be read: `fail` stops with its name; `skip` uses a
            substitute, the same one in every run and after every resume.
        worker_timeout: Seconds after which a loader process that delivers no batch is replaced; 0
            waits without limit.
        stop_on_collapse: End the run, instead of a warning, when the teacher's labels collapse.
        activation_checkpointing: Keep only the inputs of the network's blocks for the backward
            pass and recompute the other activations: less memory, the same numbers.
        channels_last: Memory layout in which convolutions are fast.
        compile: Compile the networks with `torch.compile`; starts slowly, and losses differ by
            rounding.
        deterministic: Use deterministic kernels where they exist.
        preview_every: Steps between preview pictures of the predictions, at most 20 per run; 0 for
            none.
        tensorboard: `auto` logs to TensorBoard if it is installed, `require` fails if it is not,
            `never` does not log.
        keep_best: Also keep the best checkpoint by this criterion of `udaseg select`, computed on
            unlabelled target images at each checkpoint. Null keeps only the newest.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = -1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 0
    micro_batches: int = 1
    max_bad_steps: int = 5
    on_bad_sample: Literal["fail", "skip"] = "fail"
    worker_timeout: int = 300
    stop_on_collapse: bool = False
    activation_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    preview_every: int = 1000
    tensorboard: Literal["auto", "require", "never"] = "auto"
    keep_best: Literal["entropy", "infomax", "snd", "teacher", "flip", "source", "drift"] | None = (
        None
    )


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
        machine: Settings of the machine; see `Machine` for the few that change numbers.
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
