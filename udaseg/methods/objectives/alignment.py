"""Stages 2 and 3 of SPCL: alignment with source prototypes, and self-distillation."""

from torch import nn

from udaseg.data.loading.batches import Batch
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss
from udaseg.methods.views import PSEUDO_LABELLED, SOURCE, Views, cell_view, labels_on_cells
from udaseg.models.pixels import to_unit_range
from udaseg.models.segmenter import Segmenter, SegmenterOutput


class PrototypeAlignment(Objective):
    """Cross-entropy on the source, plus prototype contrast on source and pseudo-labelled target.

    Args:
        student: The network to adapt.
        contrast: The regularizer; its second view must be `PSEUDO_LABELLED`.

    Reference:
        Xie et al., SPCL (2021), stage 2.
    """

    def __init__(self, student: Segmenter, contrast: PrototypeContrast) -> None:
        super().__init__()
        self.student = student
        self.regularizers = nn.ModuleDict({"prototypes": contrast})

    @property
    def contrast(self) -> PrototypeContrast:
        """The regularizer that holds the prototypes."""
        regularizer = self.regularizers["prototypes"]
        assert isinstance(regularizer, PrototypeContrast)
        return regularizer

    def forward(self, batch: Batch) -> LossReport:
        """Return the source loss and the contrast of both views with the prototypes."""
        if batch.target_images is None or batch.pseudo_labels is None:
            raise ValueError("prototype alignment needs target images with pseudo-labels")
        source_output: SegmenterOutput = self.student(self.source_images(batch))
        target_output: SegmenterOutput = self.student(to_unit_range(batch.target_images))
        source_loss = pixel_loss(source_output.logits, batch.source_labels)
        views = Views(
            step=batch.step,
            progress=batch.progress,
            seed=batch.seed,
            by_name={
                SOURCE: cell_view(
                    source_output, labels_on_cells(batch.source_labels, source_output)
                ),
                PSEUDO_LABELLED: cell_view(
                    target_output, labels_on_cells(batch.pseudo_labels, target_output)
                ),
            },
        )
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

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the pseudo-labels."""
        if batch.target_images is None or batch.pseudo_labels is None:
            raise ValueError("self-distillation needs target images with pseudo-labels")
        logits = self.student(to_unit_range(batch.target_images)).logits
        loss = pixel_loss(logits, batch.pseudo_labels)
        return LossReport(loss, {"target": loss})
