"""Training objectives: the base class, supervised training, and shared helpers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.adaptation.augmentation import color_jitter
from udaseg.adaptation.pixels import pixel_loss
from udaseg.contrast import CellView, Views
from udaseg.data import Batch
from udaseg.models import Segmented, Segmenter


@dataclass(frozen=True)
class LossReport:
    """The loss of one step and its components.

    Attributes:
        total: Scalar with a graph.
        parts: Scalars by name; their sum is the total.
        figures: Scalars by name that are monitored but not minimised; no gradient.
        views: Input of the regularizers; None without regularizers.
        predicted: (K,) int64, target pixels that the teacher assigned to each class, counted in
            every fourth row and column; None without a teacher.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    views: Views | None = None
    predicted: Tensor | None = None


@dataclass(frozen=True)
class Jitter:
    """Strength of the colour jitter of source images; see `color_jitter`."""

    strength: float
    hue: float


class Objective(nn.Module, ABC):
    """A training loss with the networks that it trains and the state that it keeps.

    Attributes:
        student: The network that is trained, and the one that inference uses.
        source_jitter: Colour jitter of the source images; None applies none.
    """

    student: Segmenter
    source_jitter: Jitter | None = None

    @abstractmethod
    def forward(self, batch: Batch) -> LossReport:
        """Return the loss of a batch; change no state except batch-norm statistics."""

    @abstractmethod
    def after_step(self, step: int, report: LossReport) -> None:
        """Update the state of the objective after the optimiser step."""

    def source_images(self, batch: Batch) -> Tensor:
        """Return the batch's source images (B, 3, H, W) in [0, 1], with jitter if configured."""
        images = unit_range(batch.source_images)
        if self.source_jitter is None:
            return images
        jitter, generator = self.source_jitter, generator_for(batch.seed, "source")
        jittered = color_jitter(images, generator, strength=jitter.strength, hue=jitter.hue)
        return jittered.contiguous(memory_format=torch.channels_last)


class SourceOnly(Objective):
    """Supervised cross-entropy on the source only: the baseline."""

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the source images."""
        logits = self.student(self.source_images(batch)).logits
        loss = pixel_loss(logits, batch.source_labels)
        return LossReport(loss, {"source": loss})

    def after_step(self, step: int, report: LossReport) -> None:
        """Do nothing; this objective keeps no state."""


def unit_range(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) uint8 images as floats in [0, 1], channels last."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose, whose numbers do not depend on other purposes."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def labels_on_cells(labels: Tensor, segmented: Segmented) -> Tensor:
    """Return (B, H, W) labels resized to the grid of cells by nearest neighbour, int64."""
    size = segmented.features.shape[-2:]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def cell_view(segmented: Segmented, labels: Tensor | None) -> CellView:
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
