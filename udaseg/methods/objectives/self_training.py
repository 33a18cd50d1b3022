"""Mean-teacher self-training on mixed images, with optional regularizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from udaseg.methods.views import CellView, View, Views, cell_view, labels_on_cells
from udaseg.models.segmenter import Segmenter, SegmenterOutput
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec

_COUNT_STRIDE = 4


@dataclass(frozen=True)
class _TargetLabels:
    """The teacher's labels of the target images of a step.

    Attributes:
        output: Output of the teacher.
        labels: (B, H, W) uint8, the most probable class.
        confidence: (B, H, W) in [0, 1], probability of that class.
        weight: (B, H, W) in [0, 1], the share of confident pixels.
        share: The shares that `weight` repeats.
    """

    output: SegmenterOutput
    labels: Tensor
    confidence: Tensor
    weight: Tensor
    share: Tensor


@dataclass(frozen=True)
class _MixedPass:
    """The student's pass on the ClassMix images of a step.

    Attributes:
        output: Output of the student.
        labels: (B, H, W), source labels inside the mask and teacher labels outside.
        mask: (B, H, W) bool, the pixels pasted from the source.
    """

    output: SegmenterOutput
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Step:
    """The images of a step and the passes made on them, from which views are built."""

    batch: Batch
    source: Tensor
    target: Tensor
    target_labels: _TargetLabels
    source_output: SegmenterOutput
    mixed: _MixedPass


class SelfTraining(Objective):
    """Mean-teacher self-training on ClassMix images, with optional regularizers.

    Args:
        spec: Settings of the mixing, the augmentation and the weight of the mixed images. Its
            sections for the teacher and the regularizers are not read here.
        student: The network to adapt.
        teacher: Moving average of the student.
        num_classes: K.
        regularizers: By name; the name identifies the loss and the state.

    Reference:
        Tranheden et al., DACS (2021); Zhou et al., RCCR (2022) for the CutMix view.
    """

    def __init__(
        self,
        spec: SelfTrainingSpec,
        student: Segmenter,
        teacher: Teacher,
        *,
        num_classes: int,
        regularizers: Mapping[str, Regularizer],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.student = student
        self.teacher = teacher
        self.num_classes = num_classes
        self.regularizers = nn.ModuleDict(regularizers)

    def forward(self, batch: Batch) -> LossReport:
        """Return the losses of the source, the mixed images, and the regularizers."""
        if batch.target_images is None:
            raise ValueError("self-training needs target images in the batch")
        source, target = self.source_images(batch), to_unit_range(batch.target_images)
        embedded = self._embedded_views()

        target_labels = self._label_target(target, embed="target" in embedded)
        source_output: SegmenterOutput = self.student(source, embed="source" in embedded)
        source_loss = pixel_loss(source_output.logits, batch.source_labels)
        mixed = self._mixed_pass(batch, source, target, target_labels, embed="mixed" in embedded)
        mixed_loss = self._mixed_loss(mixed, target_labels)

        parts = {"source": source_loss, "mixed": mixed_loss}
        predicted = class_counts(target_labels.labels, self.num_classes)
        figures = _figures(target_labels, predicted)
        if not self.regularizers:
            return LossReport(source_loss + mixed_loss, parts, figures, predicted_counts=predicted)

        step = _Step(batch, source, target, target_labels, source_output, mixed)
        views = self._views(step)
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

    def _needed_views(self) -> set[View]:
        return {view for term in self._regularizer_list() for view in term.needs}

    def _embedded_views(self) -> set[View]:
        """Return the views that a regularizer needs with embeddings."""
        terms = [term for term in self._regularizer_list() if term.needs_embeddings]
        return {view for term in terms for view in term.needs}

    def _label_target(self, target: Tensor, *, embed: bool) -> _TargetLabels:
        output: SegmenterOutput = self.teacher(target, embed=embed)
        labels, confidence = pseudo_labels(output.logits, (target.shape[-2], target.shape[-1]))
        weight, share = self._target_weight(confidence)
        return _TargetLabels(output, labels, confidence, weight, share)

    def _target_weight(self, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight of target pixels (B, H, W) and the share of confident pixels."""
        mixing = self.spec.mixing
        share = (confidence >= mixing.confidence).float().mean((1, 2), keepdim=True)
        if mixing.share_over == "batch":
            share = all_reduce_mean(share.mean(0, keepdim=True))
        return share.expand_as(confidence).clone(), share

    def _mixed_pass(
        self,
        batch: Batch,
        source: Tensor,
        target: Tensor,
        target_labels: _TargetLabels,
        *,
        embed: bool,
    ) -> _MixedPass:
        """Paste half of the source's classes onto the target, augment, and run the student."""
        generator = generator_for(batch.seed, "mixed")
        mask = class_mask(
            batch.source_labels,
            self.num_classes,
            generator,
            ignore_is_class=self.spec.mixing.ignore_is_class,
        )
        labels = paste(mask, batch.source_labels, target_labels.labels)
        images = self._augment(paste(mask, source, target), generator)
        return _MixedPass(self.student(images, embed=embed), labels, mask)

    def _mixed_loss(self, mixed: _MixedPass, target_labels: _TargetLabels) -> Tensor:
        weight = target_labels.weight.masked_fill(mixed.mask, 1.0)
        loss = pixel_loss(mixed.output.logits, mixed.labels, weight, mean_over="all")
        return self.spec.mix_weight * loss

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        strong = self.spec.augmentation
        return strong_augment(
            images,
            generator,
            jitter=strong.jitter,
            jitter_probability=strong.jitter_probability,
            blur_probability=strong.blur_probability,
            blur_sigma=strong.blur_sigma,
        )

    def _views(self, step: _Step) -> Views:
        """Return the views that the regularizers need; compute no others.

        The order of the passes is fixed: a pass of the student changes batch-norm statistics.
        """
        batch, needs = step.batch, self._needed_views()
        # the CutMix view contains the teacher's labels
        needs_target = bool(needs & {"target", "cutmix"})
        target = cell_view(step.target_labels.output, None) if needs_target else None
        teacher_source = self._teacher_source_view(step) if "teacher_source" in needs else None
        cutmix = square = None
        if "cutmix" in needs:
            assert target is not None
            cutmix, square = self._cutmix_view(step, target)
        by_student_head = any(term.keys_by_student_head for term in self._regularizer_list())
        return Views(
            step=batch.step,
            progress=batch.progress,
            seed=batch.seed,
            source=_source_view(step) if "source" in needs else None,
            mixed=_mixed_view(step) if "mixed" in needs else None,
            mixed_confidence=_mixed_confidence(step) if "mixed" in needs else None,
            cutmix=cutmix,
            square=square,
            target=target,
            target_by_student_head=self._target_by_student_head(step) if by_student_head else None,
            teacher_source=teacher_source,
        )

    def _teacher_source_view(self, step: _Step) -> CellView:
        output: SegmenterOutput = self.teacher(step.source, embed=True)
        return cell_view(output, labels_on_cells(step.batch.source_labels, output))

    def _cutmix_view(self, step: _Step, target: CellView) -> tuple[CellView, Tensor]:
        """Return the student's view of source images with a square of the target, and the square.

        The square (B, h, w) is a mask of cells.
        """
        source, stride = step.source, self.student.output_stride
        size = (source.shape[-2], source.shape[-1])
        generator = generator_for(step.batch.seed, "cutmix")
        square = square_mask(len(source), size, stride, generator, per=self._square_per())
        square = to_device(square, source.device)
        pixels = cells_to_pixels(square, size, stride)
        images = self._augment(paste(pixels, step.target, source), generator)
        output: SegmenterOutput = self.student(images, embed=True)
        labels = paste(
            square, target.predictions, labels_on_cells(step.batch.source_labels, output)
        )
        return cell_view(output, labels), square

    def _square_per(self) -> Literal["image", "batch"]:
        one_square = any(term.square_per == "batch" for term in self._regularizer_list())
        return "batch" if one_square else "image"

    @torch.no_grad()
    def _target_by_student_head(self, step: _Step) -> Tensor:
        assert self.student.projector is not None
        embeddings: Tensor = self.student.projector(step.target_labels.output.features)
        return embeddings


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


def _figures(target_labels: _TargetLabels, predicted: Tensor) -> dict[str, Tensor]:
    """Return the monitored scalars of a step; `predicted` are its class counts on this rank."""
    counts_of_all_ranks = all_reduce_sum(predicted)
    return {
        "confident": target_labels.share.mean(),
        "confidence": target_labels.confidence.mean(),
        "top_class": counts_of_all_ranks.max() / counts_of_all_ranks.sum(),
        # at the resolution of the logits, where the cost is negligible
        "uncertainty": normalised_entropy(target_labels.output.logits).mean(),
    }


def _source_view(step: _Step) -> CellView:
    output = step.source_output
    return cell_view(output, labels_on_cells(step.batch.source_labels, output))


def _mixed_view(step: _Step) -> CellView:
    output = step.mixed.output
    return cell_view(output, labels_on_cells(step.mixed.labels, output))


def _mixed_confidence(step: _Step) -> Tensor:
    """Return the teacher's confidence in the mixed labels on cells; 1 in the source's pixels."""
    confidence = step.target_labels.confidence.masked_fill(step.mixed.mask, 1.0)
    return F.interpolate(confidence[:, None], step.mixed.output.features.shape[-2:])[:, 0]
