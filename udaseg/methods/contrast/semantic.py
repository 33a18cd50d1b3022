"""SePiCo: pull pixels towards the teacher's source statistics of their class."""

from typing import assert_never

import torch
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.errors import UdasegError
from udaseg.methods.contrast.class_losses import bank_sum, distribution_sum, prototype_sum
from udaseg.methods.contrast.class_statistics import ClassStatistics
from udaseg.methods.contrast.mean_embedding import mean_embedding, mean_embedding_loss
from udaseg.methods.contrast.regularizer import PerViewRegularizer
from udaseg.methods.contrast.value_of_step import ValueOfStep
from udaseg.methods.pixel_loss import count_classes
from udaseg.methods.views import (
    AUGMENTED,
    MIXED,
    SOURCE,
    TEACHER_SOURCE,
    CellView,
    Need,
    View,
    Views,
    flatten_cells,
)
from udaseg.recipe.contrast import Semantic


class SemanticContrast(PerViewRegularizer):
    """SePiCo's loss: contrast cells of two views with statistics of the teacher's source cells.

    A cell is compared with class means (variant `prototype`, ProtoCL), the means of the newest
    batches (`bank`, BankCL), or means and variances (`distribution`, DistCL). The views are source
    images and, by `second_view`, mixed images or augmented target images.

    Args:
        spec: Settings of the loss and of the statistics.
        num_classes: K.

    Reference:
        Xie et al., SePiCo (2023). Its release has augmented target images as second view, labels
        of the majority of a cell's pixels, the term on the mean embedding, and zeros for classes
        that have not occurred; `sepico_release` has these settings.
    """

    def __init__(self, spec: Semantic, *, num_classes: int) -> None:
        super().__init__()
        if spec.variant == "bank" and spec.bank_rows < 1:
            raise ValueError(f"the bank needs at least one row, got {spec.bank_rows}")
        self.spec = spec
        options = {} if spec.label_share is None else {"label_share": spec.label_share}
        # mixed images are seen in each step anyway
        start = spec.start if spec.second_view == "target" else 0
        second = AUGMENTED if spec.second_view == "target" else MIXED
        self._views = (SOURCE, second)
        self.needs = (
            Need(SOURCE, embed=True, options=options, start=start),
            Need(second, embed=True, options=options, start=start),
            Need(TEACHER_SOURCE, embed=True, options=options),
        )
        self.statistics = ClassStatistics(
            num_classes,
            spec.channels,
            momentum=spec.momentum,
            bank_rows=spec.bank_rows if spec.variant == "bank" else 0,
            zero_row=spec.unseen == "zero",
        )
        self._statistics_of_step: ValueOfStep[ClassStatistics] = ValueOfStep()

    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted loss of a view; the statistics already include this step's source."""
        if views.step < self.spec.start:
            return self._nothing(views.by_name.get(view))
        cells = _rows_and_labels(views[view])
        state = self._statistics_of_step.get(views, self._preview_update)
        compared = torch.ones_like(state.seen) if self.spec.unseen == "zero" else state.seen
        match self.spec.variant:
            case "prototype":
                total, count = prototype_sum(*cells, state.means, compared, self.spec.temperature)
            case "bank":
                total, count = bank_sum(*cells, state.rows, state.filled, self.spec.temperature)
            case "distribution":
                total, count = distribution_sum(
                    *cells, state.means, state.variances, compared, self.spec.temperature
                )
            case _:
                assert_never(self.spec.variant)
        number = self._views.index(view)
        divisor = self.divisor(views, count, lambda totals: (totals[number] * compared).sum())
        loss = total / divisor
        if self.spec.mean_weight > 0:
            counted = cells[1] != IGNORE
            labelled = self.divisor(views, counted.sum(), lambda totals: totals[number].sum())
            mean = mean_embedding(cells[0], counted, labelled)
            term = mean_embedding_loss(mean, state.means, compared, self.spec.temperature)
            loss = loss + self.spec.mean_weight * term
        return self.spec.weight * loss

    def _nothing(self, view: CellView | None) -> Tensor:
        """Return the loss of a view, if it exists, before the first step with contrast."""
        if view is None or view.embeddings is None:
            return self.statistics.means.new_zeros(())
        # keep the head in the graph, so that every step trains the same parameters
        return 0.0 * view.embeddings.sum()

    def local_counts(self, views: Views) -> Tensor | None:
        """Return the cells of each class in each view, (2, K); None before the contrast starts."""
        if views.step < self.spec.start:
            return None
        num_classes = len(self.statistics.means)
        return torch.stack(
            [count_classes(views.labels[view].labels, num_classes) for view in self._views]
        )

    def update(self, views: Views) -> None:
        """Update the statistics with the teacher's embeddings of this step's source."""
        self.statistics.become(self._statistics_of_step.take(views, self._preview_update))

    def _preview_update(self, views: Views) -> ClassStatistics:
        return self.statistics.preview_update(*_rows_and_labels(views[TEACHER_SOURCE]))


def _rows_and_labels(view: CellView) -> tuple[Tensor, Tensor]:
    """Return embeddings (B h w, D) and labels (B h w,)."""
    if view.embeddings is None:
        raise UdasegError("semantic contrast needs embeddings; use a network with a projector")
    return flatten_cells(view.embeddings), view.labels.flatten()
