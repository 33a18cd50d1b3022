"""Mean-teacher self-training on mixed images, with optional regularizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import all_reduce_mean, all_reduce_sum, to_device
from udaseg.methods.augmentation import strong_augment
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.mixing import cells_to_pixels, class_mask, paste, square_mask
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.methods.objectives.objective import LossReport, Objective, generator_for, to_unit_range
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import View, Views, cell_view, labels_on_cells
from udaseg.models.segmenter import Segmenter, SegmenterOutput

_COUNT_STRIDE = 4


@dataclass(frozen=True)
class StrongAugmentation:
    """Parameters of the strong augmentation; see `strong_augment`."""

    jitter: float
    jitter_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float]


class SelfTraining(Objective):
    """Mean-teacher self-training on ClassMix images, with optional regularizers.

    Args:
        student: The network to adapt.
        teacher: Moving average of the student.
        num_classes: K.
        confidence: A target pixel is confident at or above this probability.
        share_over: Compute the share of confident pixels over the `batch` of all ranks or over
            each `image`.
        ignore_is_class: ClassMix may paste pixels labelled `IGNORE`.
        augmentation: Augmentation of the student's mixed images.
        mix_weight: Weight of the loss on the mixed images.
        regularizers: By name; the name identifies the loss and the state.

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
        augmentation: StrongAugmentation,
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
        self.augmentation = augmentation
        self.mix_weight = mix_weight
        self.regularizers = nn.ModuleDict(regularizers)

    def forward(self, batch: Batch) -> LossReport:
        """Return the losses of the source, the mixed images, and the regularizers."""
        if batch.target_images is None:
            raise ValueError("self-training needs target images in the batch")
        source, target = self.source_images(batch), to_unit_range(batch.target_images)
        labels = batch.source_labels
        needs = {need for term in self._regularizer_list() for need in term.needs}
        embedded = {
            need
            for term in self._regularizer_list()
            if term.needs_embeddings
            for need in term.needs
        }

        teacher_output: SegmenterOutput = self.teacher(target, embed="target" in embedded)
        predictions, confidence = pseudo_labels(
            teacher_output.logits, (target.shape[-2], target.shape[-1])
        )
        weight, share = self._target_weight(confidence)

        source_output: SegmenterOutput = self.student(source, embed="source" in embedded)
        source_loss = pixel_loss(source_output.logits, labels)

        generator = generator_for(batch.seed, "mixed")
        mask = class_mask(labels, self.num_classes, generator, ignore_is_class=self.ignore_is_class)
        mixed_labels = paste(mask, labels, predictions)
        mixed_images = self._augment(paste(mask, source, target), generator)
        mixed_output: SegmenterOutput = self.student(mixed_images, embed="mixed" in embedded)
        mixed_weight = weight.masked_fill(mask, 1.0)
        mixed_loss = self.mix_weight * pixel_loss(
            mixed_output.logits, mixed_labels, mixed_weight, mean_over="all"
        )

        parts = {"source": source_loss, "mixed": mixed_loss}
        predicted = class_counts(predictions, self.num_classes)
        counts_of_all_ranks = all_reduce_sum(predicted)
        figures = {
            "confident": share.mean(),
            "confidence": confidence.mean(),
            "top_class": counts_of_all_ranks.max() / counts_of_all_ranks.sum(),
            # at the resolution of the logits, where the cost is negligible
            "uncertainty": normalised_entropy(teacher_output.logits).mean(),
        }
        if not self.regularizers:
            return LossReport(source_loss + mixed_loss, parts, figures, predicted_counts=predicted)

        views = self._views(
            batch, needs, source, target, teacher_output, source_output, mixed_output, mixed_labels
        )
        if "mixed" in needs:
            mixed_confidence = F.interpolate(
                confidence.masked_fill(mask, 1.0)[:, None], mixed_output.features.shape[-2:]
            )
            views = replace(views, mixed_confidence=mixed_confidence[:, 0])
        for name, term in self.regularizers.items():
            parts[name] = term(views)
        total = torch.stack(list(parts.values())).sum()
        return LossReport(total, parts, figures, views, predicted)

    @torch.no_grad()
    def after_step(self, step: int, report: LossReport) -> None:
        """Update the teacher and the regularizers."""
        self.teacher.update(self.student, step)
        if report.views is not None:
            for term in self._regularizer_list():
                term.update(report.views)

    def _regularizer_list(self) -> Sequence[Regularizer]:
        return list(self.regularizers.values())  # type: ignore[arg-type]  # all regularizers

    def _target_weight(self, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight of target pixels (B, H, W) and the share of confident pixels."""
        share = (confidence >= self.confidence).float().mean((1, 2), keepdim=True)
        if self.share_over == "batch":
            share = all_reduce_mean(share.mean(0, keepdim=True))
        return share.expand_as(confidence).clone(), share

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        strong = self.augmentation
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
        teacher_output: SegmenterOutput,
        source_output: SegmenterOutput,
        mixed_output: SegmenterOutput,
        mixed_labels: Tensor,
    ) -> Views:
        """Return the views that the regularizers need; compute no others."""
        labels = batch.source_labels
        target_view = cell_view(teacher_output, None) if needs & {"target", "cutmix"} else None
        teacher_source = None
        if "teacher_source" in needs:
            teacher_source_output: SegmenterOutput = self.teacher(source, embed=True)
            teacher_source = cell_view(
                teacher_source_output, labels_on_cells(labels, teacher_source_output)
            )
        cutmix = square = None
        if "cutmix" in needs:
            assert target_view is not None
            generator = generator_for(batch.seed, "cutmix")
            stride, size = self.student.output_stride, (source.shape[-2], source.shape[-1])
            per = (
                "batch"
                if any(term.square_per == "batch" for term in self._regularizer_list())
                else "image"
            )
            square = square_mask(len(source), size, stride, generator, per=per)  # type: ignore[arg-type]
            square = to_device(square, source.device)
            pixels = cells_to_pixels(square, size, stride)
            images = self._augment(paste(pixels, target, source), generator)
            cutmix_output = self.student(images, embed=True)
            cutmix_labels = paste(
                square, target_view.predictions, labels_on_cells(labels, cutmix_output)
            )
            cutmix = cell_view(cutmix_output, cutmix_labels)
        student_keys = None
        if any(term.keys_by_student_head for term in self._regularizer_list()):
            assert self.student.projector is not None
            with torch.no_grad():
                student_keys = self.student.projector(teacher_output.features)
        return Views(
            step=batch.step,
            progress=batch.progress,
            seed=batch.seed,
            source=cell_view(source_output, labels_on_cells(labels, source_output))
            if "source" in needs
            else None,
            mixed=cell_view(mixed_output, labels_on_cells(mixed_labels, mixed_output))
            if "mixed" in needs
            else None,
            cutmix=cutmix,
            square=square,
            target=target_view,
            target_by_student_head=student_keys,
            teacher_source=teacher_source,
        )


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return the pixels of each class in every fourth row and column, (K,) int64.

    Args:
        labels: (B, H, W) uint8; values outside [0, K) are not counted.
        num_classes: K.
    """
    # compared, not bincount: bincount reads the largest label and waits for the device
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    sample = labels[:, ::_COUNT_STRIDE, ::_COUNT_STRIDE].reshape(-1, 1)
    return (sample == classes).sum(0)
