"""Mean-teacher self-training on mixed images, with any regularizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.adaptation.augmentation import strong_augment
from udaseg.adaptation.entropy import normalised_entropy
from udaseg.adaptation.mixing import cells_to_pixels, class_mask, paste, square_mask
from udaseg.adaptation.objective import (
    LossReport,
    Objective,
    cell_view,
    generator_for,
    labels_on_cells,
    unit_range,
)
from udaseg.adaptation.pixels import pixel_loss, pseudo_labels
from udaseg.adaptation.teacher import Teacher
from udaseg.contrast import Regularizer, View, Views, to_device
from udaseg.data import Batch
from udaseg.distributed import mean_over_ranks, sum_over_ranks
from udaseg.models import Segmented, Segmenter

_EVERY = 4


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
        share_over: The share of confident pixels is taken over the `batch` of all ranks or each
            `image`.
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
        source, target = self.source_images(batch), unit_range(batch.target_images)
        labels = batch.source_labels
        needs = {need for term in self._terms() for need in term.needs}
        embedded = {need for term in self._terms() if term.wants_embeddings for need in term.needs}

        taught: Segmented = self.teacher(target, embed="target" in embedded)
        guessed, sure = pseudo_labels(taught.logits, (target.shape[-2], target.shape[-1]))
        weight, share = self._target_weight(sure)

        on_source: Segmented = self.student(source, embed="source" in embedded)
        source_loss = pixel_loss(on_source.logits, labels)

        generator = generator_for(batch.seed, "mixed")
        mask = class_mask(labels, self.num_classes, generator, ignore_is_class=self.ignore_is_class)
        mixed_labels = paste(mask, labels, guessed)
        mixed_images = self._augment(paste(mask, source, target), generator)
        on_mixed: Segmented = self.student(mixed_images, embed="mixed" in embedded)
        mixed_weight = weight.masked_fill(mask, 1.0)
        mixed_loss = self.mix_weight * pixel_loss(
            on_mixed.logits, mixed_labels, mixed_weight, mean_over="all"
        )

        parts = {"source": source_loss, "mixed": mixed_loss}
        predicted = class_counts(guessed, self.num_classes)
        of_all = sum_over_ranks(predicted)
        figures = {
            "confident": share.mean(),
            "confidence": sure.mean(),
            "top_class": of_all.max() / of_all.sum(),
            # on the grid of the logits, so that it costs next to nothing
            "uncertainty": normalised_entropy(taught.logits).mean(),
        }
        if not self.regularizers:
            return LossReport(source_loss + mixed_loss, parts, figures, predicted=predicted)

        views = self._views(batch, needs, source, target, taught, on_source, on_mixed, mixed_labels)
        if "mixed" in needs:
            trust = F.interpolate(
                sure.masked_fill(mask, 1.0)[:, None], on_mixed.features.shape[-2:]
            )
            views = replace(views, mixed_confidence=trust[:, 0])
        for name, term in self.regularizers.items():
            parts[name] = term(views)
        total = torch.stack(list(parts.values())).sum()
        return LossReport(total, parts, figures, views, predicted)

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
            share = mean_over_ranks(share.mean(0, keepdim=True))
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
            square = to_device(square, source.device)
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


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each class occurs on a grid of every fourth row and column, (K,) int64.

    Args:
        labels: (B, H, W) uint8, classes; others are not counted.
        num_classes: K.
    """
    # compared, not bincount: that looks at the largest label and waits for the device
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    sample = labels[:, ::_EVERY, ::_EVERY].reshape(-1, 1)
    return (sample == classes).sum(0)
