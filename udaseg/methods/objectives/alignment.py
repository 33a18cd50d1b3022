"""Stages 2 and 3 of SPCL: alignment with source prototypes, and self-distillation."""

from collections.abc import Iterator

from torch import nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regularizer import reduce_with_counts
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss
from udaseg.methods.views import (
    PSEUDO_LABELLED,
    SOURCE,
    CellLabels,
    Views,
    labelled_view,
    on_cells,
    student_view,
)
from udaseg.models.segmenter import Segmenter, SegmenterOutput
from udaseg.recipe.methods import PrototypeAlignment as AlignmentSpec


class PrototypeAlignment(Objective):
    """Cross-entropy on the source, plus prototype contrast on source and pseudo-labelled target.

    Args:
        contrast: The regularizer; its second view must be `PSEUDO_LABELLED`.
        spec: Temperature of the cross-entropy, and whose cells are contrasted.

    Reference:
        Xie et al., SPCL (2021), stage 2.
    """

    def __init__(
        self, student: Segmenter, contrast: PrototypeContrast, spec: AlignmentSpec
    ) -> None:
        super().__init__(student)
        self.spec = spec
        self.regularizers = nn.ModuleDict({"prototypes": contrast})

    @property
    def contrast(self) -> PrototypeContrast:
        """The regularizer that holds the prototypes."""
        regularizer = self.regularizers["prototypes"]
        assert isinstance(regularizer, PrototypeContrast)
        return regularizer

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the losses of the source, then the contrast of the pseudo-labelled target."""
        assert batch.pseudo_labels is not None
        grid = self.student.backbone.grid(batch.pseudo_labels.shape[-2:])
        labels = CellLabels(on_cells(batch.pseudo_labels.float(), grid).long())
        views = Views(batch.step, batch.progress, batch.seed, {}, {PSEUDO_LABELLED: labels})
        labelled = reduce_with_counts(
            sums,
            views,
            {"prototypes": self.contrast},
            labelled=count_labelled(batch.source_labels),
        )["labelled"]
        output: SegmenterOutput = self.student(self.source_images(batch))
        views.by_name[SOURCE] = labelled_view(output, batch.source_labels)
        parts = {
            "source": pixel_loss(
                output.logits.float() / self.spec.temperature,
                batch.source_labels,
                num_labelled=labelled,
                align_corners=self.student.align_corners,
            )
        }
        domains = self.spec.contrast_on
        if domains != "target":
            parts["prototypes"] = self.contrast.view_loss(SOURCE, views)
        yield LossReport.of(parts, views=views, is_last=domains == "source")
        views.drop_graphs()
        if domains == "source":
            return
        output = self.student(self.target_images(batch))
        views.by_name[PSEUDO_LABELLED] = student_view(output, labels)
        parts = {"prototypes": self.contrast.view_loss(PSEUDO_LABELLED, views)}
        yield LossReport.of(parts, views=views)
        views.drop_graphs()

    def after_step(self, step: int, report: LossReport) -> None:  # noqa: ARG002 (one contract)
        """Update the prototypes with the source features of this step."""
        assert report.views is not None
        self.contrast.update(report.views)


class SelfDistillation(Objective):
    """Cross-entropy on pseudo-labelled target images only.

    Reference:
        Xie et al., SPCL (2021), stage 3.
    """

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the cross-entropy on the pseudo-labels."""
        assert batch.pseudo_labels is not None
        labelled = sums.reduce(labelled=count_labelled(batch.pseudo_labels))["labelled"]
        logits = self.student(self.target_images(batch)).logits
        loss = pixel_loss(
            logits,
            batch.pseudo_labels,
            num_labelled=labelled,
            align_corners=self.student.align_corners,
        )
        yield LossReport.of({"target": loss})
