"""The schema of a recipe: one frozen dataclass per section. Does not import torch.

What can be said about a field stands at the field: its type, its bounds, and below it what it means
and where a published value comes from. A field without a default must be written in the recipe,
because it changes the numbers. A field with a default either belongs to the machine or disables a
part. `rules.py` has what two or more fields must fulfil together.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import Field

from udaseg.documents import IfMissing, Must
from udaseg.recipe.choices import (
    BatchNorm,
    Criterion,
    HeadName,
    Logger,
    Precision,
    Resampling,
    Resize,
    Sampling,
    Size,
)
from udaseg.recipe.methods import Method
from udaseg.validation import FileName

BACKBONES = {
    "resnet18": "torchvision",
    "resnet50": "torchvision",
    "resnet101": "torchvision",
    "mobilenet_v2": "torchvision",
    "mobilenet_v3_large": "torchvision",
    "vgg16": "torchvision",
    "vgg16_bn": "torchvision",
    "efficientnet_lite0": "timm",
}
"""The built-in backbones, each with the module in `udaseg/models/backbones/` that builds it."""

RESNETS = ("resnet18", "resnet50", "resnet101")
"""Backbones for `model.first_dilation`, `model.ceil_pool` and `optimizer.repeated`."""

TIMM_PREFIX = "timm:"
"""What the name of a backbone of timm begins with."""

NAMED_WEIGHTS = ("pretrained", "imagenet", "random")
"""Values of `model.weights` that are no file; `imagenet` is an older word for `pretrained`."""

PACKAGE_NAME = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"


@dataclass(frozen=True)
class Validation:
    """Labelled images to score, for reporting only; never used for selection."""

    data: str | None
    """Name of a prepared data set, or dataset YAML; null disables validation."""
    split: str = "val"
    """The split to score."""
    resize: Resize | None = None
    """(height, width) of the network's input; `{short_side: N}` keeps the shape of each image; null
    keeps the size of each file. Scores are computed at the size of the labels.
    """


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters (LoRA, Hu et al. 2021) beside the frozen weights of the backbone."""

    kind: Literal["lora"] = "lora"
    """The only kind."""
    rank: Annotated[int, Ge(1)] = 8
    """Rank r of the matrices B A that are added to a weight; 8 in LoRA's experiments on GPT-2."""
    alpha: Annotated[float, Gt(0)] = 16
    """B A is multiplied by alpha / r."""
    on: Annotated[tuple[Literal["attention", "mlp"], ...], MinLen(1)] = ("attention", "mlp")
    """The blocks' parts whose linear layers get adapters."""


@dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str
    """`resnet101`, `mobilenet_v2` or another built-in one (the ImageNet weights of
    `efficientnet_lite0` need the extra `lite`), `timm:NAME`, or a name from another installed
    package.
    """
    output_stride: Literal[8, 16, 32]
    """Input pixels per cell of the last feature map. A network without dilation (VGG, PVTv2, Swin,
    any ViT) keeps its own, which the plan prints.
    """
    weights: str
    """`pretrained` (the network's own; `imagenet` is an older word for it), `random`, or a file:
    safetensors or a state dict, also one of `udaseg export --format state-dict`. It gives the
    backbone; `--init` gives backbone and head.
    """
    batch_norm: BatchNorm
    """Batch norm of the backbone in training: `train`, `affine_frozen` (statistics are updated,
    scale and shift are not) or `frozen` (neither is updated).
    """
    head: HeadName
    """The classifier on top of the backbone: of DeepLab, DAFormer, VFM-UDA (`upsample`), VFM-UDA++
    (`pyramid`), or of DINOv2's linear evaluation.
    """
    aspp_dilations: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
    """Dilations of the 3x3 convolutions of `deeplab_v2`, `deeplab_v3plus` and `daformer`;
    [6, 12, 18, 24] in DeepLab-v2, [6, 12] in RCCR's release, [6, 12, 18] in DeepLab-v3+ and
    DAFormer.
    """
    head_channels: Annotated[int, Ge(1)] = 256
    """Width of `deeplab_v3plus` and `daformer` (256 in DeepLab-v3+ and DAFormer), and of the first
    layer of `upsample` and `pyramid` (half the backbone's channels in VFM-UDA and VFM-UDA++).
    """
    align_corners: bool = False
    """Enlarge logits so that the outermost cells lie on the outermost pixels, in the losses, the
    pseudo-labels, predictions and exports; true in the releases of RCCR, DACS, SPCL, ADVENT and
    FDA. False makes each cell the centre of its pixels.
    """
    weights_partial: bool = False
    """Accept a weights file that leaves more than 10 % of the backbone's tensors at random values,
    or of which more than 10 % is unused (classifiers apart).
    """
    input: Literal["imagenet", "caffe"] = "imagenet"
    """Images as the weights expect them: `imagenet` as the backbone's own; `caffe` is BGR in
    [0, 255] less a mean, for weights of the releases of AdaptSegNet, ADVENT, FDA, DACS and RCCR.
    """
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a ResNet's bottleneck that has its stride: `3x3` in torchvision, `1x1` in the
    releases of AdaptSegNet, ADVENT, FDA, DACS and RCCR (Caffe's ResNet).
    """
    ceil_pool: bool = False
    """The max pooling of a ResNet rounds sizes up, as in these releases: 65 cells of stride 8 for
    512 px, not 64.
    """
    first_dilation: Literal["own", "previous"] = "own"
    """Dilation of the first block of a dilated layer of a ResNet: its `own` layer's, as in
    DeepLab-v2, or that of the `previous` layer, as in torchvision and SPCL's release.
    """
    drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Stochastic depth: in training, each image skips the last block of the backbone with this
    probability, the first with 0, and those between with rising ones; 0.1 for MiT-B5 in DAFormer.
    For networks of timm that have it.
    """
    train: Literal["all", "head", "adapters"] = "all"
    """What learns: `all`, the `head` alone, or `adapters`: these, the backbone's norms, the head;
    then checkpoints leave out what a file of `weights` has, and name that file. A part that does
    not learn is in evaluation mode and keeps its batch-norm statistics; it needs no gradients, and
    the teacher shares it.
    """
    frozen_stages: Annotated[int, Ge(0)] = 0
    """Stages of the backbone, from the images on, that do not learn, with the stem. With 1, a
    ResNet keeps its stem and layer 1.
    """
    adapters: Adapters | None = None
    """Low-rank adapters of the backbone, for `train: adapters`; `{}` takes the defaults."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and the schedule of its learning rate."""

    kind: Literal["sgd", "adamw"]
    """SGD with momentum, or AdamW."""
    lr: Annotated[float, Gt(0)]
    """Learning rate of the backbone."""
    head_lr_mult: Annotated[float, Gt(0)]
    """Factor of `lr` for head and projector."""
    backbone_lr_mult: Annotated[float, Gt(0)]
    """Factor of `lr` for the backbone; see `repeated`."""
    momentum: Annotated[float, Interval(ge=0, lt=1)]
    """Momentum of SGD, beta 1 of AdamW."""
    weight_decay: Annotated[float, Ge(0)]
    """As defined by the optimizer."""
    power: Annotated[float, Ge(0)]
    """The rate falls as (1 - step/steps) ** power: 1 is a straight line to 0, as in DAFormer and
    VFM-UDA, 0.9 that of DeepLab.
    """
    warmup: Annotated[int, Ge(0)] = 0
    """Steps of linear increase before that, from `warmup_floor` of the rate."""
    clip_norm: Annotated[float, Gt(0)] | None = None
    """Maximum gradient norm; null does not clip."""
    repeated: Literal["once", "released"] = "once"
    """How many steps a tensor of the backbone takes with its gradient: `once`, or `released` as
    often as AdaptSegNet, ADVENT, FDA, DACS and RCCR list it for SGD: the stem once, the blocks of a
    ResNet three times, their shortcuts four times. In the long run, the rate is 3 or 4 times `lr`,
    and the momentum is its 3rd or 4th power.
    """
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Factor of the rate from one block of the backbone to the one below it: the last block has the
    backbone's rate, the stem that times `layer_decay ** blocks`. 0.9 in VFM-UDA++; 1 is the same
    rate for all, as in VFM-UDA.
    """
    decay_on: Literal["all", "matrices"] = "all"
    """What `weight_decay` is for: `all` weights, as in VFM-UDA, or `matrices` alone: not norms,
    biases, positions and tokens. DAFormer leaves out norms and positions.
    """
    warmup_floor: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the rate at which `warmup` begins; 0 begins at 1 / (warmup + 1). 0.001 in VFM-UDA,
    1e-6 in DAFormer.
    """
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """`lr` is for one labelled image a step: multiply it by the number of them in all processes, or
    by its square root, as in VFM-UDA (5e-5 for the head). `none` takes `lr` as it is. The rate of a
    discriminator is never scaled.
    """


@dataclass(frozen=True)
class BatchSize:
    """Images per step, in each process."""

    source: Annotated[int, Ge(1)]
    """Labelled images."""
    target: Annotated[int, Ge(1)]
    """Unlabelled images; self-training needs as many as of the source."""


@dataclass(frozen=True)
class Expected:
    """Expected results, checked by `udaseg verify`. Overrides that change the numbers drop them."""

    miou: tuple[Annotated[float, Interval(ge=0, le=100)], Annotated[float, Interval(ge=0, le=100)]]
    """Lowest and highest mIoU of the final score, in percent."""


@dataclass(frozen=True)
class RareClass:
    """Settings of `sampling: rare_class`; the defaults are those of DAFormer."""

    temperature: Annotated[float, Gt(0)] = 0.01
    """Classes are drawn by the softmax of (1 - f) / temperature, where f is the pixel share of the
    class.
    """
    min_pixels: Annotated[int, Ge(1)] = 3000
    """Minimum pixels of the class in an image drawn for it, at the original size."""
    min_crop_pixels: Annotated[int, Ge(0)] = 1500
    """Minimum pixels of the class in its crop, after `resize`."""


_Band = Annotated[int, Ge(0)]
_Factor = Annotated[float, Interval(ge=0.1, le=10)]


@dataclass(frozen=True)
class Domain:
    """Images of one domain and how they are cut for training."""

    data: Annotated[str | tuple[str, ...], IfMissing("give it with --source NAME, or YAML")]
    """Name of a prepared data set, or dataset YAML; for a target also a folder of images, for a
    source also a list of several data sets, which are read as one.
    """
    split: str
    """The split to read."""
    resize: Resize | None
    """(height, width) in pixels; `{short_side: N}` keeps the shape of each image; null keeps the
    size of each file. For Cityscapes [512, 1024] in DACS, null in RCCR's release.
    """
    crop: Size
    """(height, width) of the random crop. A labelled image that is smaller is padded with ignored
    pixels; an unlabelled one is enlarged.
    """
    flip: bool
    """Mirror left-right with probability 1/2."""
    scale: tuple[_Factor, _Factor] = (1.0, 1.0)
    """Range of a random factor by which images are enlarged, before the crop; [0.5, 2] is usual for
    supervised training. Validation and predictions have no such factor.
    """
    bits: Annotated[int, Interval(ge=8, le=16)] | None = None
    """Bits that the values of 16-bit images use, such as 12; null takes what `prepare` found, or
    what the images of a folder use when a run opens it first, and the run stores it here.
    """
    bands: tuple[_Band, _Band, _Band] | None = None
    """Three bands of TIFFs that are read as red, green and blue; the first band is 0. null takes
    those of the dataset YAML, and the run stores them here.
    """
    resampling: Resampling = "area"
    """How `resize` computes pixels: `area` averages (enlarging is bilinear); `bicubic` is that of
    Pillow, as in the releases of DACS, RCCR and SPCL. The network reads images of any set like
    those of the target.
    """
    sampling: Sampling = "uniform"
    """How images are sampled: `uniform`; for a source also `class_balanced` (by image-level class
    counts, as in SPCL) and `rare_class` (as in DAFormer). A stage can override it.
    """
    rare_class: RareClass = field(default_factory=RareClass)
    """Settings of `rare_class`."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The data sets, of which there are several only in a source."""
        return (self.data,) if isinstance(self.data, str) else self.data


@dataclass(frozen=True)
class Source(Domain):
    """Labelled images and how they are cut for training."""

    resize_each: tuple[Resize | None, ...] = ()
    """`resize` for each of several data sets, in their order; [] uses `resize` for all."""
    shares: tuple[Annotated[int, Ge(1)], ...] = ()
    """Images drawn in turn from each of several data sets: with [3, 1], three of four are of the
    first. [] draws from all as if they were one set, so a larger one more often.
    """

    @property
    def sizes(self) -> tuple[Resize | None, ...]:
        """The `resize` of each data set."""
        return self.resize_each or (self.resize,) * len(self.sets)


@dataclass(frozen=True)
class Target(Domain):
    """Unlabelled images and how they are cut for training."""

    data: Annotated[str, IfMissing("give it with --target NAME, YAML, or folder of images")]
    """Name of a prepared data set, dataset YAML, or a folder of images."""


@dataclass(frozen=True)
class Machine:
    """Settings that do not change the numbers, except for rounding.

    `precision` and `micro_batches` change them more than by rounding.
    """

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """fp32 or bf16 (autocast; losses stay fp32)."""
    tf32: bool = True
    """On a GPU, convolutions and matrix products of the networks round their float32 inputs to
    TF32; false computes them in float32, slower. Losses are always computed in float32.
    """
    workers: Annotated[int, Ge(-1)] = -1
    """Loader processes; -1 chooses automatically."""
    log_every: Annotated[int, Ge(1)] = 50
    """Steps between lines of metrics; steps 1, 2, 5, 10 and 20 have one too."""
    checkpoint_every: Annotated[int, Ge(0)] = 1000
    """Steps between checkpoints; 0 writes only the last."""
    keep_checkpoints: Annotated[int, Ge(2)] = 2
    """Number of newest checkpoints to keep."""
    validate_every: Annotated[int, Ge(0)] = 0
    """Steps between validations; 0 validates only at the end."""
    micro_batches: Annotated[int, Ge(1)] = 1
    """Number of micro-batches of a step, to save memory; batch norm normalises each by itself.
    `--fit` sets it.
    """
    max_bad_steps: Annotated[int, Ge(1)] = 5
    """A step that is not finite is skipped; this many in a row end the run."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """For an image that cannot be read: `fail` stops with its name; `skip` uses a substitute, the
    same one in every run and after every resume.
    """
    stop_on_collapse: bool = False
    """End the run, instead of a warning, when the teacher's labels collapse."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the network's blocks for the backward pass and recompute the other
    activations: less memory, the same numbers.
    """
    compile: bool = False
    """Compile the networks with `torch.compile`; starts slowly, and losses differ by rounding."""
    deterministic: bool = False
    """Use deterministic kernels where they exist."""
    cudnn_benchmark: bool = True
    """On a GPU, cuDNN tries its algorithms for each size of input and keeps the fastest; off with
    `deterministic`.
    """
    preview_every: Annotated[int, Ge(0)] = 1000
    """Steps between preview pictures of the predictions, at most 20 per run; 0 for none."""
    loggers: tuple[Logger, ...] | None = None
    """Programs that get the metrics and previews, such as [tensorboard, wandb]; null is TensorBoard
    if it is installed, [] is none.
    """
    keep_best: Criterion | None = None
    """Also keep the best checkpoint by this criterion of `udaseg select`, computed on unlabelled
    target images at each checkpoint. Null keeps only the newest.
    """


LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Recipe:
    """All settings of one run."""

    name: FileName
    """Name of the run folder."""
    seed: Annotated[int, Interval(ge=0, le=LARGEST_SEED)]
    """All randomness is derived from it, the step and the index of the image."""
    steps: Annotated[int, Ge(1)]
    """Number of optimizer steps; 250000 in the releases of DACS and RCCR, 100000 in SPCL's."""
    source: Source
    """Labelled images."""
    target: Target
    """Unlabelled images; their labels are never read."""
    validation: Validation
    """Images that are scored at the end."""
    model: Model
    """The network."""
    optimizer: Optimizer
    """Optimizer and learning rate."""
    batch: BatchSize
    """Images per step."""
    method: Annotated[Method, Field(discriminator="kind")]
    """Training method."""
    machine: Machine = field(default_factory=Machine)
    """Settings of the machine; few of them change numbers."""
    expected: Expected | None = None
    """Expected final score, if known."""
    packages: tuple[
        Annotated[str, Field(pattern=PACKAGE_NAME), Must("the name of a package")], ...
    ] = ()
    """Installed packages that the recipe needs. Those of its plug-ins are added when it is read."""
