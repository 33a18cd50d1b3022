"""Supervised training on the source: the baseline."""

from collections.abc import Iterator

from udaseg.data.loading.batches import Batch
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import pixel_loss


class SourceOnly(Objective):
    """Supervised cross-entropy on the source only: the baseline."""

    def passes(self, batch: Batch) -> Iterator[LossReport]:
        """Yield the cross-entropy on the source images."""
        loss = pixel_loss(self.student(self.source_images(batch)).logits, batch.source_labels)
        yield LossReport.of({"source": loss})
