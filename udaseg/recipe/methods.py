"""The `method` section of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.contrast import Prototypes, Regional, Semantic


@dataclass(frozen=True)
class Teacher:
    """The mean teacher.

    Attributes:
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        batch_statistics: Normalise by the batch (as in the released DACS) instead of by the
            student's running statistics. `model.batch_norm: frozen` overrides this.
    """

    momentum: float
    batch_statistics: bool


@dataclass(frozen=True)
class StrongAugmentation:
    """Colour jitter and blur of the mixed images of the student.

    Attributes:
        jitter: Strength of brightness, contrast, saturation and hue.
        jitter_probability: Probability of jitter, per image.
        blur_probability: Probability of blur, per image.
        blur_sigma: Range of the Gaussian's standard deviation in pixels.
    """

    jitter: float
    jitter_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float]


@dataclass(frozen=True)
class Mixing:
    """ClassMix of source images onto target images.

    Attributes:
        ignore_is_class: Void counts as a class that can be pasted (as in the released DACS).
        confidence: A target pixel is confident at or above this probability; the share of
            confident pixels is the weight of all target pixels.
        share_over: Compute this share over the whole `batch` (as released) or each `image`.
    """

    ignore_is_class: bool
    confidence: float
    share_over: Literal["batch", "image"]


@dataclass(frozen=True)
class RunMethod:
    """Settings of a method for the whole run.

    Attributes:
        target_statistics: Number of unlabelled target images whose batch-norm statistics replace
            the running ones after training (AdaBN); 0 keeps the running ones. Not allowed in a
            stage.
    """

    target_statistics: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class SourceOnly(RunMethod):
    """Supervised training on the source: the baseline to beat."""

    kind: Literal["source_only"]


REGULARIZERS = ("regional", "prototypes", "semantic")
"""The fields of `SelfTraining` that hold a regularizer."""


@dataclass(frozen=True)
class SelfTraining(RunMethod):
    """Mean-teacher self-training with ClassMix (DACS), plus contrastive regularizers.

    Attributes:
        mix_weight: Weight of the loss on the mixed image.
        regional: Contrast of RCCR; leave it out for plain DACS.
        prototypes: Contrast of SPCL; can be combined with `regional`.
        semantic: Contrast of SePiCo; cannot be combined with `regional`, which has its own
            projector.
    """

    kind: Literal["self_training"]
    teacher: Teacher
    mixing: Mixing
    augmentation: StrongAugmentation
    mix_weight: float
    regional: Regional | None = None
    prototypes: Prototypes | None = None
    semantic: Semantic | None = None


@dataclass(frozen=True)
class Adversarial(RunMethod):
    """Output-space adversarial training against a discriminator of source and target.

    Attributes:
        sees: Input of the discriminator: `softmax` (AdaptSegNet, warm-up of SPCL) or
            `self_information` (AdvEnt).
        weight: Weight of the adversarial term.
        temperature: Divides the logits of both domains before softmax and cross-entropy.
        discriminator_lr: Learning rate of the discriminator; Adam with betas 0.9 and 0.99.
    """

    kind: Literal["adversarial"]
    sees: Literal["softmax", "self_information"]
    weight: float
    temperature: float
    discriminator_lr: float


@dataclass(frozen=True)
class EntropyMinimization(RunMethod):
    """Supervised training on the source, and entropy minimisation on the target.

    Attributes:
        weight: Weight of the mean entropy of target pixels, normalised by the maximum entropy.
        power: The penalty is (entropy^2 + 1e-8) ** power (FDA); null uses the entropy itself
            (MinEnt).
        band: Low frequencies of the source's spectrum, as a share of the shorter side, that get the
            target's amplitude (FDA); null leaves source images unchanged.
    """

    kind: Literal["entropy"]
    weight: float
    power: float | None = None
    band: float | None = None


@dataclass(frozen=True)
class PrototypeAlignment:
    """Second stage of SPCL: pulls source and pseudo-labelled target pixels to source prototypes.

    Attributes:
        prototypes: The contrast; its prototypes are initialised by a pass over the source.
    """

    kind: Literal["prototype_alignment"]
    prototypes: Prototypes


@dataclass(frozen=True)
class SelfDistillation:
    """Third stage of SPCL: cross-entropy on pseudo-labelled target images only."""

    kind: Literal["self_distillation"]


StageObjective = (
    SourceOnly | Adversarial | EntropyMinimization | PrototypeAlignment | SelfDistillation
)


@dataclass(frozen=True)
class PseudoLabelling:
    """Pseudo-labels of the whole target, computed once before a stage.

    Attributes:
        quantile: A class keeps the pixels at or above this quantile of its confidence.
        cap: Upper limit of the threshold.
    """

    quantile: float
    cap: float


@dataclass(frozen=True)
class StageTarget:
    """Size and crop of target images in a stage, replacing those of the recipe.

    Attributes:
        resize: (height, width) in pixels; null keeps the size of each file.
        crop: (height, width) of the random crop.
        scale: Range of a random scale factor, applied before the crop.
        flip: Mirror left-right with probability 1/2.
        batch: Images per step.
    """

    resize: tuple[int, int] | None
    crop: tuple[int, int]
    scale: tuple[float, float]
    flip: bool
    batch: int


@dataclass(frozen=True)
class SourceJitter:
    """Colour jitter of the source images.

    Attributes:
        strength: Brightness, contrast and saturation factors are in [1 - strength, 1 + strength].
        hue: Maximum rotation of the hue, as a share of a circle.
    """

    strength: float
    hue: float


@dataclass(frozen=True)
class StageSpec:
    """One stage of a staged method; it starts from the student of the previous stage.

    Attributes:
        name: Name of the stage and of its folder in the run.
        share: Share of the recipe's steps; the shares of all stages add up to 1.
        lr_mult: Factor of the recipe's learning rates; a discriminator has its own rate.
        schedule_stop: Progress of the learning rate decay at the end of the stage, in (0, 1].
        objective: What is minimised.
        source_sampling: `uniform`, `class_balanced` (by image-level class counts) or `rare_class`;
            null uses the recipe's `source.sampling`.
        source_jitter: Colour jitter of source images; null for no jitter.
        batch_norm: As in `model`; null keeps that of the model.
        pseudo_labels: How the student that the stage starts from labels the target.
        target: Size and crop of target images; null keeps those of the recipe.
    """

    name: str
    share: float
    lr_mult: float
    schedule_stop: float
    objective: StageObjective
    source_sampling: Literal["uniform", "class_balanced", "rare_class"] | None = None
    source_jitter: SourceJitter | None = None
    batch_norm: Literal["train", "affine_frozen", "frozen"] | None = None
    pseudo_labels: PseudoLabelling | None = None
    target: StageTarget | None = None


@dataclass(frozen=True)
class Staged(RunMethod):
    """Several stages in one run (SPCL).

    Attributes:
        stages: The stages, in order.
    """

    kind: Literal["staged"]
    stages: tuple[StageSpec, ...]


Objective = SelfTraining | StageObjective
Method = SourceOnly | SelfTraining | Adversarial | EntropyMinimization | Staged


def stage_ends(method: Staged, steps: int) -> tuple[int, ...]:
    """Return the first step after each stage; the last is the number of steps of the recipe."""
    ends, share = [], 0.0
    for stage in method.stages:
        share += stage.share
        ends.append(round(share * steps))
    return (*ends[:-1], steps)
