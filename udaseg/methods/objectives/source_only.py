"""Supervised training on the source: the baseline."""

from collections.abc import Iterator

from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.objectives.objective import LossReport, Objective
from udaseg.methods.pixel_loss import count_labelled, pixel_loss


class SourceOnly(Objective):
    """Supervised cross-entropy on the source only: the baseline."""

    def passes(self, batch: Batch, sums: RankSums) -> Iterator[LossReport]:
        """Yield the cross-entropy on the source images."""
        labels = batch.source_labels
        labelled = sums.reduce(labelled=count_labelled(labels))["labelled"]
        logits = self.student(self.source_images(batch)).logits
        loss = pixel_loss(
            logits, labels, num_labelled=labelled, align_corners=self.student.align_corners
        )
        yield LossReport.of({"source": loss})
