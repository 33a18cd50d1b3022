"""What is minimised: the contract, supervised training, and self-training with regularizers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.adaptation.mixing import (
    cells_to_pixels,
    class_mask,
    paste,
    square_mask,
    strong_augment,
)
from udaseg.adaptation.pixels import pixel_loss, pseudo_labels
from udaseg.adaptation.teacher import Teacher
from udaseg.contrast import CellView, Regularizer, View, Views
from udaseg.data import Batch
from udaseg.models import Segmented, Segmenter


@dataclass(frozen=True)
class LossReport:
    """What one step's loss is made of.

    Attributes:
        total: Scalar with a graph.
        parts: Scalars by name; they add up to the total.
        figures: Scalars by name that are watched, not minimised; no gradient.
        views: What the regularizers saw; None without them.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    views: Views | None = None


class Objective(nn.Module, ABC):
    """A loss with all that it trains and remembers.

    Attributes:
        student: The network that the optimiser moves and that is used afterwards.
    """

    student: Segmenter

    @abstractmethod
    def forward(self, batch: Batch) -> LossReport:
        """Return the loss of a batch; changes nothing but batch-norm statistics."""

    @abstractmethod
    def after_step(self, step: int, report: LossReport) -> None:
        """Learn from the step, after the optimiser."""


class SourceOnly(Objective):
    """Supervised cross-entropy on the source: the baseline.

    Args:
        student: The network.
    """

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the source images."""
        logits = self.student(unit_range(batch.source_images)).logits
        loss = pixel_loss(logits, batch.source_labels)
        return LossReport(loss, {"source": loss})

    def after_step(self, step: int, report: LossReport) -> None:
        """Nothing to remember."""


@dataclass(frozen=True)
class Strong:
    """Strength of the strong augmentation; see `strong_augment`."""

    jitter: float
    jitter_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float]


class SelfTraining(Objective):
    """Mean-teacher self-training on ClassMix images, with any regularizers.

    Args:
        student: The network.
        teacher: Its moving average.
        num_classes: K.
        confidence: A target pixel is confident at or above this probability.
        share_over: The share of confident pixels is taken over the `batch` or each `image`.
        ignore_is_class: ClassMix may paste void.
        strong: Augmentation of what the student sees mixed.
        mix_weight: Weight of the loss on the mixed image.
        regularizers: By name; the name labels the loss and the state.

    Reference:
        Tranheden et al., DACS (2021); Zhou et al., RCCR (2022) for the CutMix view.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Teacher,
        *,
        num_classes: int,
        confidence: float,
        share_over: Literal["batch", "image"],
        ignore_is_class: bool,
        strong: Strong,
        mix_weight: float,
        regularizers: Mapping[str, Regularizer],
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.num_classes = num_classes
        self.confidence = confidence
        self.share_over = share_over
        self.ignore_is_class = ignore_is_class
        self.strong = strong
        self.mix_weight = mix_weight
        self.regularizers = nn.ModuleDict(regularizers)

    def forward(self, batch: Batch) -> LossReport:
        """Return the loss of source, mixed, and regularizers."""
        if batch.target_images is None:
            raise ValueError("self-training needs target images in the batch")
        source, target = unit_range(batch.source_images), unit_range(batch.target_images)
        labels = batch.source_labels
        needs = {need for term in self._terms() for need in term.needs}
        embeds = any(term.wants_embeddings for term in self._terms())

        taught: Segmented = self.teacher(target, embed=embeds and "target" in needs)
        guessed, sure = pseudo_labels(taught.logits, (target.shape[-2], target.shape[-1]))
        weight, share = self._target_weight(sure)

        on_source: Segmented = self.student(source, embed=embeds and "source" in needs)
        source_loss = pixel_loss(on_source.logits, labels)

        generator = generator_for(batch.seed, "mixed")
        mask = class_mask(labels, self.num_classes, generator, ignore_is_class=self.ignore_is_class)
        mixed_labels = paste(mask, labels, guessed)
        mixed_images = self._augment(paste(mask, source, target), generator)
        on_mixed: Segmented = self.student(mixed_images, embed=embeds and "mixed" in needs)
        mixed_weight = weight.masked_fill(mask, 1.0)
        mixed_loss = self.mix_weight * pixel_loss(
            on_mixed.logits, mixed_labels, mixed_weight, mean_over="all"
        )

        parts = {"source": source_loss, "mixed": mixed_loss}
        figures = {"confident": share.mean(), "confidence": sure.mean()}
        if not self.regularizers:
            return LossReport(source_loss + mixed_loss, parts, figures)

        views = self._views(batch, needs, source, target, taught, on_source, on_mixed, mixed_labels)
        for name, term in self.regularizers.items():
            parts[name] = term(views)
        return LossReport(torch.stack(list(parts.values())).sum(), parts, figures, views)

    @torch.no_grad()
    def after_step(self, step: int, report: LossReport) -> None:
        """Let the teacher follow and the regularizers remember."""
        self.teacher.follow(self.student, step)
        if report.views is not None:
            for term in self._terms():
                term.update(report.views)

    def _terms(self) -> Sequence[Regularizer]:
        return list(self.regularizers.values())  # type: ignore[arg-type]  # a ModuleDict of them

    def _target_weight(self, sure: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight of target pixels (B, H, W) and the confident share behind it."""
        share = (sure >= self.confidence).float().mean((1, 2), keepdim=True)
        if self.share_over == "batch":
            share = share.mean(0, keepdim=True)
        return share.expand_as(sure).clone(), share

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        strong = self.strong
        return strong_augment(
            images,
            generator,
            jitter=strong.jitter,
            jitter_probability=strong.jitter_probability,
            blur_probability=strong.blur_probability,
            blur_sigma=strong.blur_sigma,
        )

    def _views(
        self,
        batch: Batch,
        needs: set[View],
        source: Tensor,
        target: Tensor,
        taught: Segmented,
        on_source: Segmented,
        on_mixed: Segmented,
        mixed_labels: Tensor,
    ) -> Views:
        """Make the passes that some regularizer asked for, and only those."""
        labels = batch.source_labels
        target_view = cell_view(taught, None) if needs & {"target", "cutmix"} else None
        teacher_source = None
        if "teacher_source" in needs:
            taught_source: Segmented = self.teacher(source, embed=True)
            teacher_source = cell_view(taught_source, labels_on_cells(labels, taught_source))
        cutmix = square = None
        if "cutmix" in needs:
            assert target_view is not None
            generator = generator_for(batch.seed, "cutmix")
            stride, size = self.student.output_stride, (source.shape[-2], source.shape[-1])
            per = "batch" if any(term.square_per == "batch" for term in self._terms()) else "image"
            square = square_mask(len(source), size, stride, generator, per=per)  # type: ignore[arg-type]
            square = square.to(source.device)
            pixels = cells_to_pixels(square, size, stride)
            images = self._augment(paste(pixels, target, source), generator)
            seen = self.student(images, embed=True)
            inside_out = paste(square, target_view.predictions, labels_on_cells(labels, seen))
            cutmix = cell_view(seen, inside_out)
        by_student = None
        if any(term.keys_by_student_head for term in self._terms()):
            assert self.student.projector is not None
            with torch.no_grad():
                by_student = self.student.projector(taught.features)
        return Views(
            step=batch.step,
            progress=batch.progress,
            seed=batch.seed,
            source=cell_view(on_source, labels_on_cells(labels, on_source))
            if "source" in needs
            else None,
            mixed=cell_view(on_mixed, labels_on_cells(mixed_labels, on_mixed))
            if "mixed" in needs
            else None,
            cutmix=cutmix,
            square=square,
            target=target_view,
            target_by_student_head=by_student,
            teacher_source=teacher_source,
        )


def unit_range(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) uint8 images as floats in [0, 1], channels last."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose in one step, so that no purpose shifts another's draws."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def labels_on_cells(labels: Tensor, segmented: Segmented) -> Tensor:
    """Return (B, H, W) labels on the grid of cells by nearest neighbour, int64."""
    size = segmented.features.shape[-2:]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def cell_view(segmented: Segmented, labels: Tensor | None) -> CellView:
    """Return a pass on the grid of cells; without labels its predictions are the labels."""
    with torch.no_grad():
        confidence, predictions = segmented.cell_logits().float().softmax(1).max(1)
    return CellView(
        features=segmented.features,
        embeddings=segmented.embeddings,
        labels=predictions if labels is None else labels,
        predictions=predictions,
        confidence=confidence,
    )
