"""What a method's section of a recipe may say."""

from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.terms import Prototypes, Regional, Semantic


@dataclass(frozen=True)
class Teacher:
    """The mean teacher.

    Attributes:
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        batch_statistics: Normalise by the batch (as DACS released it) instead of by the
            student's running statistics. Norms that `model.batch_norm: frozen` keeps do not.
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
class WholeRun:
    """What a method may say of the whole run, whatever it minimises.

    Attributes:
        target_statistics: Unlabelled target images whose batch-norm statistics take the place of
            the running ones when the training is over (AdaBN); 0 keeps those. Not in a stage.
    """

    target_statistics: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class SourceOnly(WholeRun):
    """Supervised training on the source: the baseline to beat."""

    kind: Literal["source_only"]


@dataclass(frozen=True)
class SelfTraining(WholeRun):
    """Mean-teacher self-training with ClassMix (DACS), plus the regularizers that are named.

    Attributes:
        mix_weight: Weight of the loss on the mixed image.
        regional: RCCR's contrast; leave it out for plain DACS.
        prototypes: SPCL's contrast; may stand beside the regional one.
        semantic: SePiCo's contrast; not beside the regional one, which has its own projector.
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
class Adversarial(WholeRun):
    """Output-space adversarial training: a discriminator must not tell target from source.

    Attributes:
        sees: The discriminator sees `softmax` (AdaptSegNet, SPCL's warm-up) or
            `self_information` (AdvEnt).
        weight: Weight of the adversarial term.
        temperature: Divides the logits, of both domains, before softmax and cross-entropy.
        discriminator_lr: Learning rate of the discriminator's Adam, betas 0.9 and 0.99.
    """

    kind: Literal["adversarial"]
    sees: Literal["softmax", "self_information"]
    weight: float
    temperature: float
    discriminator_lr: float


@dataclass(frozen=True)
class EntropyMinimization(WholeRun):
    """Supervised on the source, and certain on the target.

    Attributes:
        weight: Weight of the mean entropy of target pixels, in shares of the largest.
        power: The entropy is penalised as (entropy^2 + 1e-8) ** power (FDA); null takes it as it is
            (MinEnt).
        band: Low frequencies of the source's spectrum, as a share of the shorter side, that get the
            target's amplitude (FDA); null leaves source images alone.
    """

    kind: Literal["entropy"]
    weight: float
    power: float | None = None
    band: float | None = None


@dataclass(frozen=True)
class PrototypeAlignment:
    """SPCL's second stage: source and pseudo-labelled target are drawn to source prototypes.

    Attributes:
        prototypes: The contrast; its prototypes begin with a pass over the source.
    """

    kind: Literal["prototype_alignment"]
    prototypes: Prototypes


@dataclass(frozen=True)
class SelfDistillation:
    """SPCL's third stage: cross-entropy on pseudo-labelled target images alone."""

    kind: Literal["self_distillation"]


StageObjective = (
    SourceOnly | Adversarial | EntropyMinimization | PrototypeAlignment | SelfDistillation
)


@dataclass(frozen=True)
class PseudoLabelling:
    """Pseudo-labels of the whole target, made once before a stage.

    Attributes:
        quantile: A class keeps the pixels at or above this quantile of its confidence.
        cap: The threshold is never above this.
    """

    quantile: float
    cap: float


@dataclass(frozen=True)
class StageTarget:
    """How a stage cuts target images, where it differs from the recipe.

    Attributes:
        resize: (height, width) in pixels; null keeps each file's size.
        crop: (height, width) of the random crop.
        scale: Range of a random factor before the crop.
        flip: Mirror left-right with probability 1/2.
        batch: Images a step.
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
        hue: Turned by at most this share of a circle.
    """

    strength: float
    hue: float


@dataclass(frozen=True)
class Stage:
    """One stage of a staged method; it starts from the student of the stage before.

    Attributes:
        name: Names its folder in the run.
        share: Of the recipe's steps; the shares of all stages add up to 1.
        lr_mult: Factor of the recipe's learning rates; a discriminator has its own rate.
        schedule_stop: How far the decay of the rate has come at the stage's end, in (0, 1].
        objective: What is minimised.
        source_sampling: `uniform`, `class_balanced` by image-level class counts, or `rare_class`;
            null as the recipe's source says.
        source_jitter: Of the source images that are trained on; null leaves them as they are.
        batch_norm: As in `model`; null keeps the model's.
        pseudo_labels: Of the target, made by the student that the stage starts from.
        target: How target images are cut; null as the recipe says.
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
class Staged(WholeRun):
    """Stages one after another in one run (SPCL).

    Attributes:
        stages: In order.
    """

    kind: Literal["staged"]
    stages: tuple[Stage, ...]


Objective = SelfTraining | StageObjective
Method = SourceOnly | SelfTraining | Adversarial | EntropyMinimization | Staged


def stage_ends(method: Staged, steps: int) -> tuple[int, ...]:
    """Return the step at which each stage is over; the last is the recipe's."""
    ends, share = [], 0.0
    for stage in method.stages:
        share += stage.share
        ends.append(round(share * steps))
    return (*ends[:-1], steps)
