"""SePiCo: pull pixels towards the teacher's source statistics of their class."""

from typing import assert_never

import torch
from torch import Tensor

from udaseg.errors import UdasegError
from udaseg.methods.contrast.class_losses import bank_sum, distribution_sum, prototype_sum
from udaseg.methods.contrast.class_statistics import ClassStatistics
from udaseg.methods.contrast.regularizer import PerViewRegularizer
from udaseg.methods.contrast.value_of_step import ValueOfStep
from udaseg.methods.pixel_loss import count_classes
from udaseg.methods.views import (
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

_VIEWS = (SOURCE, MIXED)


class SemanticContrast(PerViewRegularizer):
    """SePiCo's loss: contrast source and mixed cells with statistics of the teacher's source cells.

    A cell is compared with class means (variant `prototype`, ProtoCL), the means of the newest
    batches (`bank`, BankCL), or means and variances (`distribution`, DistCL).

    Args:
        spec: Settings of the loss and of the statistics.
        num_classes: K.

    Reference:
        Xie et al., SePiCo (2023). Differs: the mixed view replaces augmented target images; the
        release has a further term on the mean embedding, weight 1, which is omitted here.
    """

    needs = (Need(SOURCE, embed=True), Need(MIXED, embed=True), Need(TEACHER_SOURCE, embed=True))

    def __init__(self, spec: Semantic, *, num_classes: int) -> None:
        super().__init__()
        if spec.variant == "bank" and spec.bank_rows < 1:
            raise ValueError(f"the bank needs at least one row, got {spec.bank_rows}")
        self.spec = spec
        self.statistics = ClassStatistics(
            num_classes,
            spec.channels,
            momentum=spec.momentum,
            bank_rows=spec.bank_rows if spec.variant == "bank" else 0,
        )
        self._statistics_of_step: ValueOfStep[ClassStatistics] = ValueOfStep()

    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted loss of a view; the statistics already include this step's source."""
        cells = _rows_and_labels(views[view])
        if views.step < self.spec.start:
            # keep the head in the graph, so that every step trains the same parameters
            return 0.0 * cells[0].sum()
        state = self._statistics_of_step.get(views, self._preview_update)
        match self.spec.variant:
            case "prototype":
                total, count = prototype_sum(*cells, state.means, state.seen, self.spec.temperature)
            case "bank":
                total, count = bank_sum(*cells, state.rows, state.filled, self.spec.temperature)
            case "distribution":
                total, count = distribution_sum(
                    *cells, state.means, state.variances, state.seen, self.spec.temperature
                )
            case _:
                assert_never(self.spec.variant)
        divisor = self.divisor(
            views, count, lambda totals: (totals[_VIEWS.index(view)] * state.seen).sum()
        )
        return self.spec.weight * total / divisor

    def local_counts(self, views: Views) -> Tensor:
        """Return the cells of each class in each view, (2, K)."""
        num_classes = len(self.statistics.means)
        return torch.stack(
            [count_classes(views.labels[view].labels, num_classes) for view in _VIEWS]
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
