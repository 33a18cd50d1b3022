"""What a contrastive term of a method may say in a recipe."""

from dataclasses import dataclass
from typing import Literal


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
        min_confidence: A cell of a mixed image counts when the teacher is this sure of its label;
            only in self-training, SPCL's own stages have thresholds of their own.
    """

    weight: float
    temperature: float
    momentum: float
    absent: Literal["keep", "fade"]
    normalise: bool
    min_confidence: float = 0.0


@dataclass(frozen=True)
class Semantic:
    """SePiCo's contrast with the class statistics of the teacher's source embeddings.

    Attributes:
        variant: `prototype`, `bank` or `distribution` (ProtoCL, BankCL, DistCL).
        weight: Weight of the term.
        temperature: Softmax temperature.
        momentum: Weight that older vectors keep at an update; 1 is the mean over all of them.
        bank_rows: Batch means kept of each class; only the bank variant uses them.
        channels: Dimension of the embedding.
        start: First step with contrast; the statistics learn from step 0.
    """

    variant: Literal["prototype", "bank", "distribution"]
    weight: float
    temperature: float
    momentum: float
    bank_rows: int
    channels: int
    start: int = 0
