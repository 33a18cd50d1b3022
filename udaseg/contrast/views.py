"""What a regularizer sees of a step, and the contract it keeps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

View = Literal["source", "mixed", "cutmix", "target", "teacher_source", "pseudo_labelled"]


@dataclass(frozen=True)
class CellView:
    """One pass of a network over a batch, on the grid of cells.

    Attributes:
        features: (B, C, h, w).
        embeddings: (B, D, h, w) unit vectors; None without a projector.
        labels: (B, h, w) int64, a class or `IGNORE`; pseudo-labels where there is no truth.
        predictions: (B, h, w) int64, the most probable class; no gradient.
        confidence: (B, h, w) in [0, 1], its probability; no gradient.
    """

    features: Tensor
    embeddings: Tensor | None
    labels: Tensor
    predictions: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Views:
    """The passes of one step that some regularizer needs; the others are None.

    Attributes:
        step: Number of the step.
        progress: step / steps, in [0, 1).
        seed: Seeds the regularizers' random choices.
        source: The student on source images, with their labels.
        mixed: The student on ClassMix images, with mixed labels.
        mixed_confidence: (B, h, w) the teacher's confidence in the label of a mixed cell, 1 where
            the label is the source's.
        cutmix: The student on source images that hold a square of the target; labels are the
            source's outside the square and the teacher's inside.
        square: (B, h, w) bool, the cells inside that square.
        target: The teacher on plain target images; no gradient.
        target_by_student_head: (B, D, h, w) the teacher's features through the student's head,
            no gradient; only when an ablation asks for it.
        teacher_source: The teacher on plain source images, with their labels; no gradient.
        pseudo_labelled: The student on plain target images, with pseudo-labels that were made
            before the stage began.
    """

    step: int
    progress: float
    seed: int
    source: CellView | None = None
    mixed: CellView | None = None
    mixed_confidence: Tensor | None = None
    cutmix: CellView | None = None
    square: Tensor | None = None
    target: CellView | None = None
    target_by_student_head: Tensor | None = None
    teacher_source: CellView | None = None
    pseudo_labelled: CellView | None = None


class Regularizer(nn.Module, ABC):
    """A term of the loss that compares views; reads in `forward`, remembers in `update`.

    All that it remembers is in persistent buffers. `needs` names the views to be made for it,
    `wants_embeddings` whether they must be projected.
    """

    needs: frozenset[View]
    wants_embeddings: bool
    square_per: Literal["image", "batch"] = "image"
    keys_by_student_head: bool = False

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return the weighted term, a scalar; changes nothing."""

    @abstractmethod
    def update(self, views: Views) -> None:
        """Remember what the step showed; once a step, after the optimiser, on all ranks alike."""
