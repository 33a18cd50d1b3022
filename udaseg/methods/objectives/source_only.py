"""Supervised training on the source: the baseline."""

from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss
from udaseg.models.segmenter import Segmenter


class SourceOnly(Objective):
    """Supervised cross-entropy on the source only: the baseline."""

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the source images."""
        logits = self.student(self.source_images(batch)).logits
        loss = pixel_loss(logits, batch.source_labels)
        return LossReport(loss, {"source": loss})
