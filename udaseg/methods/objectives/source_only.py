"""Supervised training on the source: the baseline."""

from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss


class SourceOnly(Objective):
    """Supervised cross-entropy on the source only: the baseline."""

    def forward(self, batch: Batch) -> LossReport:
        """Return the cross-entropy on the source images."""
        loss = pixel_loss(self.student(self.source_images(batch)).logits, batch.source_labels)
        return LossReport(loss, {"source": loss})
