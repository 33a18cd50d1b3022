"""The views of a step that regularizers receive: network outputs on the grid of cells."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.models.segmenter import SegmenterOutput

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
        progress: As `Batch.progress`, in [0, 1).
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


def labels_on_cells(labels: Tensor, segmented: SegmenterOutput) -> Tensor:
    """Return (B, H, W) labels resized to the grid of cells by nearest neighbour, int64."""
    size = segmented.features.shape[-2:]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def flatten_cells(maps: Tensor) -> Tensor:
    """Return (B, D, h, w) maps as (B h w, D), one row for each cell."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def cell_view(segmented: SegmenterOutput, labels: Tensor | None) -> CellView:
    """Return an output on the grid of cells; without labels, its predictions are the labels."""
    with torch.no_grad():
        confidence, predictions = segmented.cell_logits().float().softmax(1).max(1)
    return CellView(
        features=segmented.features,
        embeddings=segmented.embeddings,
        labels=predictions if labels is None else labels,
        predictions=predictions,
        confidence=confidence,
    )
