"""Stages 2 and 3 of SPCL: alignment with source prototypes, and self-distillation."""

from torch import nn

from udaseg.data.loading.batches import Batch
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss
from udaseg.methods.views import PSEUDO_LABELLED, SOURCE, Views, labelled_view
from udaseg.models.segmenter import Segmenter, SegmenterOutput


class PrototypeAlignment(Objective):
    """Cross-entropy on the source, plus prototype contrast on source and pseudo-labelled target.

    Args:
        contrast: The regularizer; its second view must be `PSEUDO_LABELLED`.

    Reference:
        Xie et al., SPCL (2021), stage 2.
    """

    def __init__(self, student: Segmenter, contrast: PrototypeContrast) -> None:
        super().__init__(student)
        self.regularizers = nn.ModuleDict({"prototypes": contrast})

    @property
    def contrast(self) -> PrototypeContrast:
        """The regularizer that holds the prototypes."""
        regularizer = self.regularizers["prototypes"]
        assert isinstance(regularizer, PrototypeContrast)
        return regularizer

    def forward(self, batch: Batch) -> LossReport:
        """Return the source loss and the contrast of both views with the prototypes."""
        assert batch.pseudo_labels is not None
        source_output: SegmenterOutput = self.student(self.source_images(batch))
        target_output: SegmenterOutput = self.student(self.target_images(batch))
        source_loss = pixel_loss(source_output.logits, batch.source_labels)
        by_name = {
            SOURCE: labelled_view(source_output, batch.source_labels),
            PSEUDO_LABELLED: labelled_view(target_output, batch.pseudo_labels),
        }
        views = Views(batch.step, batch.progress, batch.seed, by_name)
        contrast = self.contrast(views)
        parts = {"source": source_loss, "prototypes": contrast}
        return LossReport(source_loss + contrast, parts, views=views)

    def after_step(self, step: int, report: LossReport) -> None:  # noqa: ARG002 (one contract)
        """Update the prototypes with the source features of this step."""
        assert report.views is not None
        self.contrast.update(report.views)


class SelfDistillation(Objective):
    """Cross-entropy on pseudo-labelled target images only.

    Reference:
        Xie et al., SPCL (2021), stage 3.
    """

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the pseudo-labels."""
        assert batch.pseudo_labels is not None
        loss = pixel_loss(self.student(self.target_images(batch)).logits, batch.pseudo_labels)
        return LossReport(loss, {"target": loss})
