"""Recipe sections of the contrastive terms of a method."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Projector:
    """The projection head in front of a contrastive loss.

    Attributes:
        channels: Dimension of the embedding.
        trainable: False keeps the random initialisation (as in the released RCCR).
    """

    channels: int
    trainable: bool


@dataclass(frozen=True)
class Regional:
    """RCCR's region-wise contrast.

    Attributes:
        weight: Weight of the loss at the last step.
        ramp: Increase to it as exp(-5 (1 - sqrt(step/steps))); false keeps it constant.
        start: First step with contrast.
        temperature: Softmax temperature.
        min_confidence: Anchors need a teacher confidence above this.
        bank_steps: Number of steps whose cells the memory bank holds, including the current one.
        cells_per_view: Random cells of each view, over all ranks, that a step adds to the bank.
        region_size: Side of a region in cells, average-pooled; 1 as released.
        square_per: One CutMix square per `batch` (as released) or per `image`.
        keep_ignored: Add ignored cells to the bank, as negatives of all anchors (as released).
        negative_sampling: Drop bank rows of the anchor's class (false only for ablation).
        positive_filtering: Drop anchors of low confidence (false only for ablation).
        momentum_head: Compute keys with the teacher's head; false uses the student's (for
            ablation).
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
        momentum: Share of a prototype that is kept at an update.
        absent: Prototypes of classes that are not in the batch: `keep` or `fade` (as released).
        normalise: Scale prototypes to unit length after an update (not in the release).
        min_confidence: Minimum confidence of the teacher for a cell of a mixed image to count.
            Only in self-training; the stages of SPCL have their own thresholds.
    """

    weight: float
    temperature: float
    momentum: float
    absent: Literal["keep", "fade"]
    normalise: bool
    min_confidence: float = 0.0


@dataclass(frozen=True)
class Semantic:
    """SePiCo's contrast with class statistics of the teacher's source embeddings.

    Attributes:
        variant: `prototype`, `bank` or `distribution` (ProtoCL, BankCL, DistCL).
        weight: Weight of the term; 1 as published.
        temperature: Softmax temperature; 100 as published, where the variants hardly differ.
        momentum: Weight of older vectors at an update; 1, as published, gives the mean over all of
            them.
        bank_rows: Batch means kept per class, 200 as published; used only by the bank variant.
        channels: Dimension of the embedding.
        start: First step with contrast, 3000 as published; the statistics are updated from step 0.
    """

    variant: Literal["prototype", "bank", "distribution"]
    weight: float
    temperature: float
    momentum: float
    bank_rows: int
    channels: int
    start: int = 0
