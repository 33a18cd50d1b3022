"""The base class of regularizers, and the views of a step that they receive."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

View = Literal["source", "mixed", "cutmix", "target", "teacher_source", "pseudo_labelled"]


@dataclass(frozen=True)
class CellView:
    """The output of a network for a batch, on the grid of cells.

    Attributes:
        features: (B, C, h, w).
        embeddings: (B, D, h, w) unit vectors; None without a projector.
        labels: (B, h, w) int64, a class or `IGNORE`; pseudo-labels if there is no ground truth.
        predictions: (B, h, w) int64, the most probable class; no gradient.
        confidence: (B, h, w) in [0, 1], probability of the prediction; no gradient.
    """

    features: Tensor
    embeddings: Tensor | None
    labels: Tensor
    predictions: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Views:
    """The network outputs of one step that regularizers need; views that none needs are None.

    Attributes:
        step: Number of the step.
        progress: step / steps, in [0, 1).
        seed: Seed of the regularizers' random choices.
        source: The student on source images, with their labels.
        mixed: The student on ClassMix images, with mixed labels.
        mixed_confidence: (B, h, w), confidence of the teacher in the labels of `mixed`; 1 where the
            label comes from the source.
        cutmix: The student on source images with a pasted square of the target; labels come from
            the source outside the square and from the teacher inside.
        square: (B, h, w) bool, the cells inside the square.
        target: The teacher on plain target images; no gradient.
        target_by_student_head: (B, D, h, w), the teacher's features projected by the student's
            head; no gradient; only for an ablation.
        teacher_source: The teacher on plain source images, with their labels; no gradient.
        pseudo_labelled: The student on plain target images, with pseudo-labels written before the
            stage.
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
    """A loss term that compares views; `forward` computes it, `update` changes its state.

    All state is in persistent buffers. `needs` names the views that it reads, `wants_embeddings`
    says whether they need embeddings.
    """

    needs: frozenset[View]
    wants_embeddings: bool
    square_per: Literal["image", "batch"] = "image"
    keys_by_student_head: bool = False

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss, a scalar; change no state."""

    @abstractmethod
    def update(self, views: Views) -> None:
        """Update the state, once per step after the optimiser, identically on all ranks."""
