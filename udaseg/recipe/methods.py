"""The `method` section of a recipe."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import Field

from udaseg.documents import Must
from udaseg.recipe.choices import BatchNorm, Resize, Sampling, Size
from udaseg.recipe.contrast import (
    FeatureDistance,
    Prototypes,
    Regional,
    RegularizerSpec,
    Semantic,
)


@dataclass(frozen=True)
class Prior:
    """A correction of the teacher's probabilities for how often it predicts each class.

    The probability of a class is divided by (its running mean) ^ `exponent`, so rare classes gain
    at their borders. Not published for this use.
    """

    exponent: Annotated[float, Interval(ge=0, le=1)]
    """0 corrects nothing, 1 all of it; 0.25 in our measurements."""
    towards: Literal["uniform", "source"]
    """`uniform` takes all classes to be equally frequent, and after many steps takes from large
    ones. `source` also multiplies by (running share of the class in the source's labels) ^
    `exponent`, so classes that the teacher predicts as often as they are in the source stay.
    """
    momentum: Annotated[float, Interval(ge=0, le=1)] = 0.99
    """m <- a m + (1 - a) x with a = min(1 - 1/(step + 1), momentum), for both running means."""


@dataclass(frozen=True)
class Teacher:
    """The mean teacher."""

    momentum: Annotated[float, Interval(ge=0, le=1)]
    """phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum); 0.99 in DACS."""
    batch_statistics: bool
    """Normalise by the batch, as in DACS's release, instead of by the student's running statistics,
    which do not match the averaged weights. `model.batch_norm: frozen` overrides this.
    """
    ramp: Literal["from_zero", "from_half"] = "from_zero"
    """`from_zero`, as in DACS, becomes the student at the first update; `from_half`, as in DAFormer
    and SePiCo, has a = min(1 - 1/(step + 2), momentum), so that update keeps half of the teacher.
    """
    mirror: bool = False
    """Label a target image by the mean of the probabilities for it and for its mirror image, as in
    VFM-UDA; a second pass of the teacher.
    """
    scale: Annotated[float, Interval(ge=0.5, le=4)] | None = 1.0
    """Label target images at this multiple of their size; null is 1.5 for plain ViTs, 1 for others.
    """
    prior: Prior | None = None
    """Correct the probabilities for the frequencies of the classes; off by default. Pseudo-labels
    and their confidence come from the corrected ones.
    """


@dataclass(frozen=True)
class StrongAugmentation:
    """Colour jitter and blur of the mixed images of the student."""

    jitter: Annotated[float, Interval(ge=0, le=0.5)]
    """Strength of brightness, contrast, saturation and hue, which turns at most half a circle; 0.25
    in DACS.
    """
    jitter_probability: Annotated[float, Interval(ge=0, le=1)]
    """Probability of jitter, per image; 0.8 in DACS."""
    blur_probability: Annotated[float, Interval(ge=0, le=1)]
    """Probability of blur, per image; 0.5 in DACS."""
    blur_sigma: tuple[
        Annotated[float, Interval(gt=0, le=2)], Annotated[float, Interval(gt=0, le=2)]
    ]
    """Range of the Gaussian's standard deviation in pixels; [0.15, 1.15] in DACS."""
    kind: Literal["torchvision", "kornia_0_4"] = "torchvision"
    """Whose operations. `kornia_0_4`, the library of DACS's time, adds brightness, multiplies
    contrast and the saturation of HSV, and mirrors images at their edges to blur them;
    `torchvision` multiplies brightness, and blends with the mean grey and with grey.
    """
    per: Literal["image", "batch"] = "image"
    """Decide for each `image` whether it is jittered and blurred, or once per `batch`, as in DACS's
    release. The strength is drawn for each image.
    """


@dataclass(frozen=True)
class Mixing:
    """ClassMix of source images onto target images."""

    ignore_is_class: bool
    """Void counts as a class that can be pasted, as in DACS's release."""
    confidence: Annotated[float, Interval(ge=0, le=1)]
    """A target pixel is confident at or above this probability; the share of confident pixels is
    the weight of all target pixels. 0.968 in DACS.
    """
    share_over: Literal["batch", "image", "class"]
    """Of the `batch`, as in DACS, or of each `image`. With `class`, there is no share: confident
    pixels of each pseudo-class count fully and others not at all; see `class_quantile`.
    """
    classes_of: Literal["image", "batch"] = "image"
    """An image is given half of its own classes, as in DACS, or half of those in the whole `batch`,
    as in DAFormer and SePiCo.
    """
    ignore_rows: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] = (0, 0)
    """(top, bottom) rows of target images whose labels are not trained on; [15, 120] in DAFormer
    and SePiCo, for the upper edge and the car's hood in Cityscapes.
    """
    class_quantile: Annotated[float, Interval(ge=0, le=1)] = 0.8
    """With `share_over: class`, pixels are confident from this quantile of the confidence of their
    class in the steps before, or from `confidence` if that is lower. Not published.
    """


@dataclass(frozen=True)
class TargetCrop:
    """A crop of the target images that the teacher's labels choose, as in SePiCo's release.

    The teacher labels whole target images. Of some random crops it takes the one with the most
    balanced classes, the largest sum of ln(pixels) over its classes, and labels it again.
    """

    tries: Annotated[int, Ge(0)] = 0
    """Random crops to choose from, each as large as `source.crop`, out of a larger `target.crop`;
    10 in SePiCo's release, whose `target.crop` is the whole image. 0 chooses no crop.
    """
    max_share: Annotated[float, Interval(gt=0, le=1)] = 0.75
    """A crop in which one class has this share, or more, is the worst; 0.75 in SePiCo's release."""


@dataclass(frozen=True)
class Masking:
    """Masked image consistency: the student labels target images of which parts are hidden.

    It learns the teacher's labels of the whole image, with the weights of target pixels in mixed
    images; MIC.
    """

    kind: Literal["block", "token"]
    """What is hidden: square blocks of the image, which get the mean colour (MIC), or tokens of a
    plain ViT, which become those of an empty patch before positions are added (VFM-UDA).
    """
    size: Annotated[int, Ge(1)] = 64
    """Side of a block in pixels; 64 in MIC for crops of 1024, 32 for crops of 512."""
    ratio: Annotated[float, Interval(ge=0, le=1)] = 0.7
    """Share of blocks or tokens that is hidden, at random; 0.7 in MIC and VFM-UDA."""
    weight: Annotated[float, Ge(0)] | None = 1.0
    """Weight of the loss; 1 in MIC. Null is 1 for plain ViTs, and no masked images for others."""
    ramp: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the steps, after the warm-up, in which the weight rises from 0; 0 in MIC."""


@dataclass(frozen=True)
class RunMethod:
    """Settings of a method for the whole run."""

    target_statistics: Annotated[int, Ge(0)] = field(default=0, kw_only=True)
    """Unlabelled target images whose batch-norm statistics replace the running ones after training;
    0 keeps the running ones. AdaBN uses all images. Not allowed in a stage.
    """


@dataclass(frozen=True)
class SourceOnly(RunMethod):
    """Supervised training on the source: the baseline to beat."""

    kind: Literal["source_only"]


@dataclass(frozen=True)
class SelfTraining(RunMethod):
    """Mean-teacher self-training with ClassMix (DACS), plus contrastive regularizers."""

    kind: Literal["self_training"]
    teacher: Teacher
    """The network that labels the target."""
    mixing: Mixing
    """How source and target images are mixed."""
    augmentation: StrongAugmentation
    """What is done to mixed images."""
    mix_weight: Annotated[float, Ge(0)]
    """Weight of the loss on the mixed image; 1 in DACS."""
    augment_source: bool = False
    """Jitter and blur the source images of the student too, as in SePiCo's release."""
    source_mean: Literal["labelled", "all"] = "labelled"
    """Pixels that the mean loss on source images divides by: those with a class, or `all`, as in
    DAFormer and SePiCo.
    """
    target_crop: TargetCrop = field(default_factory=TargetCrop)
    """A crop of the target images by the teacher's labels; off by default."""
    regional: Regional | None = None
    """Contrast of RCCR; leave it out for plain DACS."""
    prototypes: Prototypes | None = None
    """Contrast of SPCL."""
    semantic: Semantic | None = None
    """Contrast of SePiCo. Of all regularizers, only one can have a projector."""
    regularizers: Mapping[str, Any] = field(default_factory=dict)
    """Settings of regularizers of other installed packages, by their name."""
    feature_distance: FeatureDistance | None = None
    """Distance to the features of the frozen backbone, as in VFM-UDA++ or DAFormer."""
    warm_up: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the steps that train on the source alone, as `source_only` does. Then the teacher
    starts as the student, all else begins, and its steps are counted from there; the learning rate
    goes on. 0 in DACS; a network that is good from the start is hurt by labels of a teacher that is
    not.
    """
    masking: Masking | None = None
    """A further pass of the student on masked target images, as in MIC."""
    mix_ramp: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the steps, after the warm-up, in which the weight of the loss on mixed images rises
    from 0 to `mix_weight`; 0 in DACS.
    """


@dataclass(frozen=True)
class Adversarial(RunMethod):
    """Output-space adversarial training against a discriminator of source and target."""

    kind: Literal["adversarial"]
    sees: Literal["softmax", "self_information"]
    """Input of the discriminator: `softmax` (AdaptSegNet, warm-up of SPCL) or `self_information`
    (AdvEnt).
    """
    weight: Annotated[float, Ge(0)]
    """Weight of the adversarial term; 0.001 in AdvEnt and SPCL."""
    temperature: Annotated[float, Gt(0)]
    """Divides the logits of both domains before softmax and cross-entropy; 1 in AdvEnt, 1.8 in
    SPCL.
    """
    discriminator_lr: Annotated[float, Gt(0)]
    """Learning rate of the discriminator, 1e-4 in AdvEnt and SPCL; Adam with betas 0.9 and 0.99."""
    target_temperature: Annotated[float, Gt(0)] | None = None
    """Divides the target's logits instead of `temperature`; 1 in SPCL's release. Null takes
    `temperature`.
    """


@dataclass(frozen=True)
class EntropyMinimization(RunMethod):
    """Supervised training on the source, and entropy minimisation on the target."""

    kind: Literal["entropy"]
    weight: Annotated[float, Ge(0)]
    """Weight of the mean entropy of target pixels, normalised by the maximum entropy; 0.001 in
    MinEnt, 0.005 in FDA.
    """
    power: Annotated[float, Gt(0)] | None = None
    """The penalty is (entropy^2 + 1e-8) ** power, with 2 in FDA; null uses the entropy itself
    (MinEnt).
    """
    band: Annotated[float, Interval(ge=0, le=0.5)] | None = None
    """Low frequencies of the source's spectrum, as a share of the shorter side, that get the
    target's amplitude; 0.01 is the smallest of FDA's three. Null leaves source images unchanged.
    """
    window: Literal["numpy", "torch"] = "numpy"
    """With b = floor(shorter side x band), the low frequencies are -b..b (`numpy`), or -b..b-1, so
    none for b = 0 (`torch`, which trains the published models).
    """
    start: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the steps (of the stage) after which the entropy counts; 0.5 in FDA's release: step
    50000 of 100000.
    """
    max_entropy: Annotated[float, Gt(0)] | None = None
    """Divisor of the entropy; null is ln K, its maximum for K classes. 2.9444 in FDA's release,
    close to ln 19.
    """
    at: Literal["cells", "pixels"] = "cells"
    """Take the entropy of each cell of the logits, as FDA, or of each pixel after enlarging them to
    the image, as ADVENT's release.
    """


@dataclass(frozen=True)
class PrototypeAlignment:
    """Second stage of SPCL: pulls source and pseudo-labelled target pixels to source prototypes."""

    kind: Literal["prototype_alignment"]
    prototypes: Prototypes
    """The contrast; its prototypes are initialised by a pass over the source."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the source's logits in the cross-entropy; 1.8 in SPCL, as in its first stage."""
    contrast_on: Literal["both", "source", "target"] = "both"
    """Whose cells are pulled to the prototypes: `both`, as in SPCL, or those of one domain, for
    ablation. The prototypes come from the source in any case.
    """


@dataclass(frozen=True)
class SelfDistillation:
    """Third stage of SPCL: cross-entropy on pseudo-labelled target images only."""

    kind: Literal["self_distillation"]


StageObjective = (
    SourceOnly | Adversarial | EntropyMinimization | PrototypeAlignment | SelfDistillation
)


@dataclass(frozen=True)
class PseudoLabelling:
    """Pseudo-labels of the whole target, computed once before a stage, or those of a folder."""

    quantile: Annotated[float, Interval(ge=0, le=1)] | None = None
    """A class keeps the pixels at or above this quantile of its confidence; 0.5 in SPCL."""
    cap: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Upper limit of the threshold; 0.9 in SPCL."""
    rank: Literal["lower", "released"] = "lower"
    """Position of the quantile q among n sorted values, from 0: `lower` rounds (n - 1) q down;
    `released` rounds n q to the nearest, for the median the upper of the two middle ones, as in
    SPCL's release.
    """
    resize: Resize | None = None
    """(height, width) of the images that are labelled, or `{short_side: N}`; their labels then have
    the size of the files. [512, 1024] in SPCL's release. Null labels images as the stage reads
    them.
    """
    folder: str | None = None
    """Folder with a PNG for each image, of any tool, instead of the student's own labels. An image
    without one, and pixels of 255, are not trained on. `${VAR}` and `~` are replaced.
    """
    ids: Literal["train", "label"] = "train"
    """What the PNGs of `folder` hold: `train` ids, which are positions in the classes of a
    `prediction.json` in or next to the folder, else of the target, else of the source; or the
    `label` ids of Cityscapes.
    """


@dataclass(frozen=True)
class StageTarget:
    """Size and crop of target images in a stage, replacing those of the recipe."""

    resize: Resize | None
    """(height, width) in pixels, or `{short_side: N}`; null keeps the size of each file."""
    crop: Size
    """(height, width) of the random crop."""
    scale: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]]
    """Range of a random scale factor, applied before the crop; [0.5, 1.5] in SPCL's release."""
    flip: bool
    """Mirror left-right with probability 1/2."""
    batch: Annotated[int, Ge(1)]
    """Images per step."""


@dataclass(frozen=True)
class ColorJitter:
    """Colour jitter of the images of a domain, drawn for each image."""

    strength: Annotated[float, Interval(ge=0, le=1)]
    """Brightness, contrast and saturation factors are in [1 - strength, 1 + strength]; 0.5 in
    SPCL.
    """
    hue: Annotated[float, Interval(ge=0, le=0.5)]
    """Maximum rotation of the hue, as a share of a circle; 0.2 in SPCL."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of a staged method; it starts from the student of the previous stage."""

    name: Annotated[str, Field(pattern="^[a-z0-9_]+$"), Must("a-z, 0-9 and '_'")]
    """Name of the stage and of its folder in the run."""
    share: Annotated[float, Gt(0)]
    """Share of the recipe's steps; the shares of all stages add up to 1. SPCL: 0.4, 0.4, 0.2."""
    lr_mult: Annotated[float, Gt(0)]
    """Factor of the recipe's learning rates; a discriminator has its own rate. 2 in the last stage
    of SPCL.
    """
    schedule_stop: Annotated[float, Interval(gt=0, le=1)]
    """Progress of the learning rate decay at the end of the stage; 0.64 in SPCL's release."""
    objective: Annotated[StageObjective, Field(discriminator="kind")]
    """What is minimised."""
    source_sampling: Sampling | None = None
    """As `source.sampling`, which null uses; `class_balanced` in SPCL's release."""
    source_jitter: ColorJitter | None = None
    """Colour jitter of source images; null for no jitter."""
    target_jitter: ColorJitter | None = None
    """Colour jitter of target images; null for no jitter. In the last stage of SPCL as for the
    source.
    """
    batch_norm: BatchNorm | None = None
    """As in `model`; null keeps that of the model. SPCL: `frozen`, and `train` in the last."""
    pseudo_labels: PseudoLabelling | None = None
    """How the student that the stage starts from labels the target."""
    target: StageTarget | None = None
    """Size and crop of target images; null keeps those of the recipe."""


@dataclass(frozen=True)
class Staged(RunMethod):
    """Several stages in one run (SPCL)."""

    kind: Literal["staged"]
    stages: Annotated[tuple[StageSpec, ...], MinLen(1)]
    """The stages, in order."""


Objective = SelfTraining | StageObjective
Method = SourceOnly | SelfTraining | Adversarial | EntropyMinimization | Staged


def built_in_regularizers() -> tuple[str, ...]:
    """Return the names of the built-in regularizers: the optional sections of `SelfTraining`.

    Raises:
        TypeError: One of them is missing in `RegularizerSpec`.
    """
    hints, names = typing.get_type_hints(SelfTraining), []
    for part in fields(SelfTraining):
        members = typing.get_args(hints[part.name])
        sections = [each for each in members if is_dataclass(each) and each is not Masking]
        if sections and not set(sections) <= set(typing.get_args(RegularizerSpec)):
            raise TypeError(f"recipe/contrast.py: add {part.name}'s class to RegularizerSpec")
        names += [part.name] * bool(sections)
    return tuple(names)


def regularizer_specs(method: SelfTraining) -> dict[str, Any]:
    """Return the settings of every regularizer of a method by name, built-in ones first."""
    built_in = {name: getattr(method, name) for name in built_in_regularizers()}
    return {name: spec for name, spec in built_in.items() if spec is not None} | dict(
        method.regularizers
    )


def warm_up_steps(method: Method | Objective, steps: int) -> int:
    """Return how many of the `steps` of a run train on the source alone before anything else.

    All of them do where `target_statistics` alone adapt the network, as in AdaBN.
    """
    if isinstance(method, SourceOnly):
        return steps if method.target_statistics else 0
    return round(method.warm_up * steps) if isinstance(method, SelfTraining) else 0


def stage_ends(method: Staged, steps: int) -> tuple[int, ...]:
    """Return the first step after each stage; the last is the number of steps of the recipe."""
    ends, share = [], 0.0
    for stage in method.stages:
        share += stage.share
        ends.append(round(share * steps))
    return (*ends[:-1], steps)
