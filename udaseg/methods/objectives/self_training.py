"""Mean-teacher self-training on mixed images, with optional regularizers."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for, strong_augment
from udaseg.methods.contrast.regularizer import (
    PerViewRegularizer,
    Regularizer,
    reduce_with_counts,
)
from udaseg.methods.masking import masked_input
from udaseg.methods.mixing import balanced_crop, class_mask, fill_edge_rows, paste
from udaseg.methods.objectives.entropy import normalised_entropy
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss, pseudo_labels
from udaseg.methods.target_labels import (
    REMEMBERED,
    ClassPrior,
    TargetWeights,
    ask_teacher,
    class_counts,
    enlarged,
    label_scale,
)
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import (
    MASKED,
    MIXED,
    SOURCE,
    STUDENT_MAKERS,
    STUDENT_VIEWS,
    TARGET,
    TEACHER_MAKERS,
    CellLabels,
    Need,
    StepContext,
    StudentInput,
    View,
    Views,
    cells_without,
    labels_on_cells,
    merge_needs,
    on_cells,
    student_view,
)
from udaseg.models.checkpointing import frozen_statistics
from udaseg.models.segmenter import Segmenter, SegmenterOutput
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec
from udaseg.recipe.methods import warm_up_steps


@dataclass(frozen=True)
class Mixed:
    """ClassMix images (B, 3, H, W) with labels and mask (B, H, W) of pixels from the source."""

    images: Tensor
    labels: Tensor
    mask: Tensor


class SelfTraining(Objective):
    """Mean-teacher self-training on ClassMix images, with optional regularizers.

    Args:
        spec: Its sections for the regularizers are not read here.
        student: The network to adapt.
        teacher: Moving average of the student.
        num_classes: K.
        regularizers: By name; the name identifies the loss and the state.
        steps: Steps of the run, of which the warm-up is a share.

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
        steps: int = 0,
    ) -> None:
        super().__init__(student)
        self.spec = spec
        self.teacher = teacher
        self.weights = TargetWeights(spec.mixing, num_classes)
        prior = spec.teacher.prior
        self.prior = None if prior is None else ClassPrior(prior, num_classes)
        self.num_classes = num_classes
        self.regularizers = nn.ModuleDict(regularizers)
        self.warm_up_steps, self._steps = warm_up_steps(spec, steps), steps
        self._check_needs()

    @property
    def label_scale(self) -> float:
        """The multiple of their size at which the teacher labels target images."""
        return label_scale(self.spec.teacher, self.student)

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the losses of each view of the student, in the order of `STUDENT_VIEWS`.

        In the warm-up, there is one view, of the source, and no other loss.
        """
        if batch.step < self.warm_up_steps:
            yield self._warm_up_pass(batch, sums)
            return
        batch = self._since_warm_up(batch)
        context, needs = self._teach(batch), self._needs(batch.step)
        mixed = self._mix(context)
        inputs = self._student_inputs(context, mixed, needs)
        order = list(inputs)
        views = _views_of_teacher(context, needs, inputs)
        weight, totals, monitored = self._sum_over_ranks(context, views, sums)

        parts: dict[str, Tensor] = {}
        for number, (view, given) in enumerate(inputs.items()):
            embed = view in needs and needs[view].embed
            output = self._pass(view, given.images, embed=embed)
            if given.labels is not None:
                views.by_name[view] = student_view(output, given.labels)
            if view == SOURCE:
                parts["source"] = self._source_loss(output, batch, totals["labelled"])
            elif view == MIXED:
                parts["mixed"] = self._mixed_loss(output, context, mixed, weight)
            elif view == MASKED:
                parts["masked"] = self._masked_loss(output, context, weight)
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
            views.drop_graphs()

    def _pass(self, view: View, images: Tensor, *, embed: bool) -> SegmenterOutput:
        """Return the student's output; masked images do not change its running statistics."""
        kept = frozen_statistics(self.student) if view == MASKED else contextlib.nullcontext()
        with kept:
            output: SegmenterOutput = self.student(images, embed=embed)
        return output

    def _warm_up_pass(self, batch: Batch, sums: RankSums) -> LossReport:
        """Return the loss on the source, as `SourceOnly` has it."""
        labelled = sums.reduce(labelled=count_labelled(batch.source_labels))["labelled"]
        output = self.student(self._source_input(batch, self.source_images(batch)))
        return LossReport.of({"source": self._source_loss(output, batch, labelled)})

    def _since_warm_up(self, batch: Batch) -> Batch:
        """Return the batch with steps and progress counted from the end of the warm-up."""
        if self.warm_up_steps == 0:
            return batch
        step = batch.step - self.warm_up_steps
        return replace(batch, step=step, progress=step / (self._steps - self.warm_up_steps))

    def _source_input(self, batch: Batch, images: Tensor) -> Tensor:
        """Return source images as the student sees them, augmented if so configured."""
        if not self.spec.augment_source:
            return images
        return self._augment(images, generator_for(batch.seed, "source"))

    def _source_loss(self, output: SegmenterOutput, batch: Batch, labelled: Tensor) -> Tensor:
        return pixel_loss(
            output.logits,
            batch.source_labels,
            mean_over=self.spec.source_mean,
            num_labelled=labelled,
            align_corners=self.student.align_corners,
        )

    def _mixed_loss(
        self, output: SegmenterOutput, context: StepContext, mixed: Mixed, weight: Tensor
    ) -> Tensor:
        loss = self._target_loss(output, mixed.labels, weight.masked_fill(mixed.mask, 1.0))
        rise = _rise(context.batch.progress, self.spec.mix_ramp)
        return self.spec.mix_weight * rise * loss

    def _masked_loss(self, output: SegmenterOutput, context: StepContext, weight: Tensor) -> Tensor:
        spec = self.spec.masking
        assert spec is not None and spec.weight is not None
        loss = self._target_loss(output, context.target_labels, weight)
        return spec.weight * _rise(context.batch.progress, spec.ramp) * loss

    def _target_loss(self, output: SegmenterOutput, labels: Tensor, weight: Tensor) -> Tensor:
        """Return the mean over all pixels of the cross-entropy with the teacher's labels."""
        return pixel_loss(
            output.logits,
            labels,
            weight.expand(labels.shape),
            mean_over="all",
            align_corners=self.student.align_corners,
        )

    def _teach(self, batch: Batch) -> StepContext:
        """Return the images of the step and the teacher's labels of the target."""
        source, target = self.source_images(batch), self.target_images(batch)
        if self.spec.target_crop.tries > 0:
            target = self._chosen_crop(target, batch)
        need = self._needs(batch.step).get(TARGET)
        embed = need is not None and need.embed
        if self.label_scale == 1:
            label_output = output = self._ask(target, embed=embed)
        else:
            label_output = output = self._ask(enlarged(target, self.label_scale), embed=False)
            if self.regularizers:  # they compare it with the student, on its grid of cells
                output = self._ask(target, embed=embed)
        labels, confidence = self._read_labels(label_output, target)
        return StepContext(
            batch=batch,
            student=self.student,
            teacher=self.teacher,
            augment=self._augment,
            source=source,
            target=target,
            target_output=output,
            label_output=label_output,
            target_labels=labels,
            target_confidence=confidence,
            ignore_rows=self.spec.mixing.ignore_rows,
        )

    @torch.no_grad()
    def label(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels and confidence (B, H, W) of target images (B, 3, H, W), as in a step."""
        output = self._ask(enlarged(images, self.label_scale), embed=False)
        return self._read_labels(output, images)

    def _read_labels(self, output: SegmenterOutput, images: Tensor) -> tuple[Tensor, Tensor]:
        aligned = self.student.align_corners
        return pseudo_labels(output.logits, images.shape[-2:], align_corners=aligned)

    def _ask(self, images: Tensor, *, embed: bool) -> SegmenterOutput:
        """Return the teacher's output for target images, corrected for the class prior."""
        output = ask_teacher(self.teacher, images, embed=embed, mirror=self.spec.teacher.mirror)
        return output if self.prior is None else self.prior.corrected(output)

    def _chosen_crop(self, images: Tensor, batch: Batch) -> Tensor:
        """Return crops of the target, as large as the source's, that its labels choose."""
        labels, _ = self._read_labels(self.teacher(images), images)
        generator, spec = generator_for(batch.seed, "crop"), self.spec.target_crop
        height, width = batch.source_labels.shape[1:]
        return balanced_crop(images, labels, (height, width), self.num_classes, generator, spec)

    def _without_ignored_rows(self, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the weight of pixels of (B, H, W) labels, 0 in rows not trained on."""
        rows = self.spec.mixing.ignore_rows
        return fill_edge_rows(weight.expand(labels.shape), rows, 0) if any(rows) else weight

    def _sum_over_ranks(
        self, context: StepContext, views: Views, sums: RankSums
    ) -> tuple[Tensor, Mapping[str, Tensor], dict[str, Any]]:
        """Return the weight of target pixels, the sums over ranks, and what reports have.

        The weight has the shape of that of `TargetWeights`, or that of the labels.
        """
        given = context.target_labels, context.target_confidence
        source_labels = context.batch.source_labels
        predicted = class_counts(context.target_labels, self.num_classes)
        numbers = self.weights.numbers(*given)
        if self.prior is not None:
            numbers |= self.prior.numbers(context.label_output, source_labels)
        totals = reduce_with_counts(
            sums,
            views,
            dict(self._named_regularizers()),
            labelled=count_labelled(source_labels),
            predicted=predicted,
            **numbers,
        )
        weight = self._without_ignored_rows(self.weights.weight(*given, totals), given[0])
        figures = _figures(context, weight.mean(), totals["predicted"])
        seen = {name: totals[name] for name in REMEMBERED if name in totals}
        return weight, totals, {"figures": figures, "predicted_counts": predicted, "seen": seen}

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

    def idle_parameters(self, step: int) -> Iterator[nn.Parameter]:
        """Return those of projection head and regularizers, in steps that do not use them."""
        idle: list[nn.Module | None] = []
        if step < self.warm_up_steps:
            idle = [self.student.projector, *self.regularizers.values()]
        else:
            needs = self._needs(step - self.warm_up_steps)
            if not any(need.embed for view, need in needs.items() if view in STUDENT_VIEWS):
                idle = [self.student.projector]
        return (part for module in idle if module is not None for part in module.parameters())

    @torch.no_grad()
    def after_step(self, step: int, report: LossReport) -> None:
        """Update the teacher and the regularizers; in the warm-up, the teacher is the student."""
        if step < self.warm_up_steps:
            self.teacher.copy(self.student)
            return
        step -= self.warm_up_steps
        self.teacher.update(self.student, step)
        self.weights.update(report.seen)
        if self.prior is not None:
            self.prior.update(report.seen, step)
        if report.views is not None:
            for _, term in self._named_regularizers():
                term.update(report.views)

    def _named_regularizers(self) -> list[tuple[str, Regularizer]]:
        return list(self.regularizers.items())  # type: ignore[arg-type]  # all regularizers

    def _needs(self, step: int) -> dict[View, Need]:
        """Return what the regularizers need in a step."""
        terms = self._named_regularizers()
        needed = (need for _, term in terms for need in term.needs if need.start <= step)
        return merge_needs(needed)

    def _check_needs(self) -> None:
        """Refuse regularizers that ask for what the step cannot give."""
        merge_needs(need for _, term in self._named_regularizers() for need in term.needs)
        for name, term in self._named_regularizers():
            if self.student.projector is None and any(need.embed for need in term.needs):
                raise UdasegError(
                    f"the regularizer '{name}' needs embeddings, but its settings have no "
                    "field `projector`, so the network has no projection head"
                )

    def _mix(self, context: StepContext) -> Mixed:
        """Paste half of the source's classes onto the target."""
        labels = context.batch.source_labels
        generator = generator_for(context.batch.seed, "mixed")
        mask = class_mask(
            labels,
            self.num_classes,
            generator,
            ignore_is_class=self.spec.mixing.ignore_is_class,
            classes_of=self.spec.mixing.classes_of,
        )
        images = self._augment(paste(mask, context.source, context.target), generator)
        return Mixed(images, paste(mask, labels, context.target_labels), mask)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return strong_augment(images, generator, self.spec.augmentation)

    def _student_inputs(
        self, context: StepContext, mixed: Mixed, needs: Mapping[View, Need]
    ) -> dict[View, StudentInput]:
        """Return what the student sees, in order, with labels for the views that are needed."""
        images = self._source_input(context.batch, context.source)
        source_labels = mixed_labels = None
        output = context.target_output
        if SOURCE in needs:
            share = needs[SOURCE].options.get("label_share")
            labels = labels_on_cells(context.batch.source_labels, output, share)
            source_labels = CellLabels(labels)
        if MIXED in needs:
            options = needs[MIXED].options
            sure = context.target_confidence.masked_fill(mixed.mask, 1.0)
            shows = options.get("from_target", False)
            mixed_labels = CellLabels(
                labels_on_cells(mixed.labels, output, options.get("label_share")),
                on_cells(sure, context.grid),
                from_target=cells_without(mixed.mask, context.grid) if shows else None,
            )
        inputs = {
            SOURCE: StudentInput(images, source_labels),
            MIXED: StudentInput(mixed.images, mixed_labels),
            **{
                view: make(context, needs[view])
                for view, make in STUDENT_MAKERS.items()
                if view in needs
            },
        }
        if self.spec.masking is not None:
            inputs[MASKED] = masked_input(context, self.spec.masking)
        return {view: inputs[view] for view in STUDENT_VIEWS if view in inputs}


def _views_of_teacher(
    context: StepContext, needs: Mapping[View, Need], inputs: Mapping[View, StudentInput]
) -> Views:
    """Return the views of the teacher, and the labels of those that the student will make."""
    batch = context.batch
    return Views(
        batch.step,
        batch.progress,
        batch.seed,
        {
            view: make(context, needs[view])
            for view, make in TEACHER_MAKERS.items()
            if view in needs
        },
        {view: given.labels for view, given in inputs.items() if given.labels is not None},
        images={view: inputs[view].images for view in inputs if _shows_images(needs.get(view))},
    )


def _shows_images(need: Need | None) -> bool:
    return need is not None and need.options.get("images", False)


def _figures(context: StepContext, sure: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Return what is monitored of the teacher; `counts` are `class_counts` of all ranks."""
    return {
        "confident": sure,
        "confidence": context.target_confidence.mean(),
        "top_class": (counts.max() / counts.sum()).float(),
        # at the resolution of the logits, where the cost is negligible
        "uncertainty": normalised_entropy(context.label_output.logits).mean(),
    }


def _rise(progress: float, share: float) -> float:
    """Return the factor of a weight that rises from 0 to 1 in this share of the steps."""
    return 1.0 if progress >= share else progress / share


def _checked_loss(name: str, loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != ():
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UdasegError(f"the regularizer '{name}' must return a scalar tensor, got {what}")
    return loss
