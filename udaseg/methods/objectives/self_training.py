"""Mean-teacher self-training on mixed images, with optional regularizers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import all_reduce_mean, all_reduce_sum
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for, strong_augment
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.mixing import class_mask, paste
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import (
    MIXED,
    SOURCE,
    TARGET,
    Need,
    StepContext,
    View,
    make_views,
    merge_needs,
)
from udaseg.models.segmenter import Segmenter, SegmenterOutput
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec

_COUNT_STRIDE = 4


class SelfTraining(Objective):
    """Mean-teacher self-training on ClassMix images, with optional regularizers.

    Args:
        spec: Its sections for the teacher and the regularizers are not read here.
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
        super().__init__(student)
        self.spec = spec
        self.teacher = teacher
        self.num_classes = num_classes
        self.regularizers = nn.ModuleDict(regularizers)
        self._check_needs()

    def forward(self, batch: Batch) -> LossReport:
        """Return the losses of the source, the mixed images, and the regularizers."""
        source, target = self.source_images(batch), self.target_images(batch)
        needs = self._needs()
        embedded = {view for view, need in needs.items() if need.embed}

        target_output: SegmenterOutput = self.teacher(target, embed=TARGET in embedded)
        target_labels, confidence = pseudo_labels(target_output.logits, target.shape[-2:])
        share = self._confident_share(confidence)
        source_output: SegmenterOutput = self.student(source, embed=SOURCE in embedded)
        source_loss = pixel_loss(source_output.logits, batch.source_labels)
        images, mixed_labels, mask = self._mix(batch, source, target, target_labels)
        mixed_output: SegmenterOutput = self.student(images, embed=MIXED in embedded)
        weight = share.masked_fill(mask, 1.0)
        mixed_loss = pixel_loss(mixed_output.logits, mixed_labels, weight, mean_over="all")

        parts = {"source": source_loss, "mixed": self.spec.mix_weight * mixed_loss}
        context = StepContext(
            batch=batch,
            student=self.student,
            teacher=self.teacher,
            augment=self._augment,
            source=source,
            target=target,
            target_output=target_output,
            target_confidence=confidence,
            source_output=source_output,
            mixed_output=mixed_output,
            mixed_labels=mixed_labels,
            mixed_mask=mask,
        )
        views = make_views(context, needs) if self.regularizers else None
        for name, term in self.regularizers.items():
            parts[name] = _checked_loss(name, term(views))
        predicted = class_counts(target_labels, self.num_classes)
        counts_of_all_ranks = all_reduce_sum(predicted)
        figures = {
            "confident": share.mean(),
            "confidence": confidence.mean(),
            "top_class": counts_of_all_ranks.max() / counts_of_all_ranks.sum(),
            # at the resolution of the logits, where the cost is negligible
            "uncertainty": normalised_entropy(target_output.logits).mean(),
        }
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

    def _needs(self) -> dict[View, Need]:
        return merge_needs(need for term in self._regularizer_list() for need in term.needs)

    def _check_needs(self) -> None:
        """Refuse regularizers that ask for what the step cannot give."""
        self._needs()
        for name, term in zip(self.regularizers, self._regularizer_list(), strict=True):
            if self.student.projector is None and any(need.embed for need in term.needs):
                raise UdasegError(
                    f"the regularizer '{name}' needs embeddings, but its settings have no "
                    "field `projector`, so the network has no projection head"
                )

    def _confident_share(self, confidence: Tensor) -> Tensor:
        """Return the share of confident pixels, (B, 1, 1) of each image or (1, 1, 1) of all."""
        share = (confidence >= self.spec.mixing.confidence).float().mean((1, 2), keepdim=True)
        if self.spec.mixing.share_over == "image":
            return share
        return all_reduce_mean(share.mean(0, keepdim=True))

    def _mix(
        self, batch: Batch, source: Tensor, target: Tensor, target_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Paste half of the source's classes onto the target; return images, labels and mask."""
        generator = generator_for(batch.seed, "mixed")
        mask = class_mask(
            batch.source_labels,
            self.num_classes,
            generator,
            ignore_is_class=self.spec.mixing.ignore_is_class,
        )
        images = self._augment(paste(mask, source, target), generator)
        return images, paste(mask, batch.source_labels, target_labels), mask

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return strong_augment(images, generator, self.spec.augmentation)


def _checked_loss(name: str, loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != ():
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UdasegError(f"the regularizer '{name}' must return a scalar tensor, got {what}")
    return loss


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return the pixels of each class in every fourth row and column of (B, H, W) labels, (K,)."""
    # compared, not bincount: bincount reads the largest label and waits for the device
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    sample = labels[:, ::_COUNT_STRIDE, ::_COUNT_STRIDE].reshape(-1, 1)
    return (sample == classes).sum(0)
