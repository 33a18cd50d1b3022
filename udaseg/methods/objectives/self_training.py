"""Mean-teacher self-training on mixed images, with optional regularizers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums, world_size
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for, strong_augment
from udaseg.methods.contrast.regularizer import PerViewRegularizer, Regularizer
from udaseg.methods.mixing import class_mask, paste
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss, pseudo_labels
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import (
    MIXED,
    SOURCE,
    STUDENT_MAKERS,
    TARGET,
    TEACHER_MAKERS,
    Need,
    StepContext,
    View,
    Views,
    labelled_view,
    merge_needs,
    mixed_view,
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

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the losses of each view of the student, in the order of `STUDENT_VIEWS`."""
        context, needs = self._teach(batch), self._needs()
        share, labelled, monitored = self._sum_over_ranks(context, sums)
        views = Views(batch.step, batch.progress, batch.seed, {})
        for view, make in TEACHER_MAKERS.items():
            if view in needs:
                views.by_name[view] = make(context, needs[view])

        order = [SOURCE, MIXED, *(view for view in STUDENT_MAKERS if view in needs)]
        parts: dict[str, Tensor] = {}
        for number, view in enumerate(order):
            if view == SOURCE:
                parts["source"] = self._source_pass(context, views, needs.get(SOURCE), labelled)
            elif view == MIXED:
                parts["mixed"] = self._mixed_pass(context, views, needs.get(MIXED), share)
            else:
                views.by_name[view] = STUDENT_MAKERS[view](context, needs[view])
            for name, loss in self._regularizer_losses(view, views, last=order[-1]):
                parts[name] = parts[name] + loss if name in parts else loss
            if self._is_compared_with_later(number, order):
                continue  # one graph for all views that a regularizer compares
            yield LossReport.of(
                parts,
                views=views if self.regularizers else None,
                is_last=view == order[-1],
                **monitored,
            )
            parts = {}
            for seen in order[: number + 1]:
                if seen in views.by_name:
                    views.drop_graph(seen)

    def _teach(self, batch: Batch) -> StepContext:
        """Return the images of the step and what the teacher says about the target."""
        source, target = self.source_images(batch), self.target_images(batch)
        need = self._needs().get(TARGET)
        output: SegmenterOutput = self.teacher(target, embed=need is not None and need.embed)
        labels, confidence = pseudo_labels(output.logits, target.shape[-2:])
        return StepContext(
            batch=batch,
            student=self.student,
            teacher=self.teacher,
            augment=self._augment,
            source=source,
            target=target,
            target_output=output,
            target_labels=labels,
            target_confidence=confidence,
        )

    def _sum_over_ranks(
        self, context: StepContext, sums: RankSums
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the confident share, the labelled source pixels, and what is monitored.

        The share is (B, 1, 1) of each image or (1, 1, 1) of all.
        """
        predicted = class_counts(context.target_labels, self.num_classes)
        share = self._confident_share(context.target_confidence)
        totals = sums.reduce(
            labelled=count_labelled(context.batch.source_labels),
            predicted=predicted,
            share=share.mean(0, keepdim=True),
        )
        if self.spec.mixing.share_over == "batch":
            share = (totals["share"] / world_size()).float()
        figures = _figures(context, share, totals["predicted"])
        return share, totals["labelled"], {"figures": figures, "predicted_counts": predicted}

    def _source_pass(
        self, context: StepContext, views: Views, need: Need | None, num_labelled: Tensor
    ) -> Tensor:
        """Return the loss of the source images, and add their view if it is needed."""
        labels = context.batch.source_labels
        output: SegmenterOutput = self.student(
            context.source, embed=need is not None and need.embed
        )
        if need is not None:
            views.by_name[SOURCE] = labelled_view(output, labels)
        return pixel_loss(output.logits, labels, num_labelled=num_labelled)

    def _mixed_pass(
        self, context: StepContext, views: Views, need: Need | None, share: Tensor
    ) -> Tensor:
        """Return the weighted loss of ClassMix images, and add their view if it is needed."""
        images, labels, mask = self._mix(context)
        output: SegmenterOutput = self.student(images, embed=need is not None and need.embed)
        if need is not None:
            views.by_name[MIXED] = mixed_view(output, labels, mask, context.target_confidence)
        weight = share.masked_fill(mask, 1.0)
        loss = pixel_loss(output.logits, labels, weight, mean_over="all")
        return self.spec.mix_weight * loss

    def _regularizer_losses(
        self, view: View, views: Views, *, last: View
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses that can be computed now that the student has made `view`."""
        for name, term in self._named_regularizers():
            student_views = term.student_views()
            if isinstance(term, PerViewRegularizer):
                if view in student_views:
                    yield name, _checked_loss(name, term.view_loss(view, views))
            elif view == (student_views[-1] if student_views else last):
                yield name, _checked_loss(name, term(views))

    def _is_compared_with_later(self, number: int, order: Sequence[View]) -> bool:
        """Return whether one loss needs the graphs of views up to `number` and of later ones."""
        return any(
            order.index(views[0]) <= number < order.index(views[-1])
            for _, term in self._named_regularizers()
            if not isinstance(term, PerViewRegularizer) and (views := term.student_views())
        )

    @torch.no_grad()
    def after_step(self, step: int, report: LossReport) -> None:
        """Update the teacher and the regularizers."""
        self.teacher.update(self.student, step)
        if report.views is not None:
            for _, term in self._named_regularizers():
                term.update(report.views)

    def _named_regularizers(self) -> list[tuple[str, Regularizer]]:
        return list(self.regularizers.items())  # type: ignore[arg-type]  # all regularizers

    def _needs(self) -> dict[View, Need]:
        return merge_needs(need for _, term in self._named_regularizers() for need in term.needs)

    def _check_needs(self) -> None:
        """Refuse regularizers that ask for what the step cannot give."""
        self._needs()
        for name, term in self._named_regularizers():
            if self.student.projector is None and any(need.embed for need in term.needs):
                raise UdasegError(
                    f"the regularizer '{name}' needs embeddings, but its settings have no "
                    "field `projector`, so the network has no projection head"
                )

    def _confident_share(self, confidence: Tensor) -> Tensor:
        """Return the share of confident pixels of each image, (B, 1, 1)."""
        return (confidence >= self.spec.mixing.confidence).float().mean((1, 2), keepdim=True)

    def _mix(self, context: StepContext) -> tuple[Tensor, Tensor, Tensor]:
        """Paste half of the source's classes onto the target; return images, labels and mask."""
        labels = context.batch.source_labels
        generator = generator_for(context.batch.seed, "mixed")
        mask = class_mask(
            labels,
            self.num_classes,
            generator,
            ignore_is_class=self.spec.mixing.ignore_is_class,
        )
        images = self._augment(paste(mask, context.source, context.target), generator)
        return images, paste(mask, labels, context.target_labels), mask

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return strong_augment(images, generator, self.spec.augmentation)


def _figures(context: StepContext, share: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Return what is monitored of the teacher; `counts` are `class_counts` of all ranks."""
    return {
        "confident": share.mean(),
        "confidence": context.target_confidence.mean(),
        "top_class": (counts.max() / counts.sum()).float(),
        # at the resolution of the logits, where the cost is negligible
        "uncertainty": normalised_entropy(context.target_output.logits).mean(),
    }


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
