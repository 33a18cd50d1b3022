"""SePiCo: pull pixels towards the teacher's source statistics of their class."""

from typing import Literal, assert_never

from torch import Tensor

from udaseg.distributed import mean_divisor
from udaseg.errors import UdasegError
from udaseg.methods.contrast.class_losses import bank_sum, distribution_sum
from udaseg.methods.contrast.class_statistics import ClassStatistics, StatisticsState
from udaseg.methods.contrast.prototype_loss import prototype_sum
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.views import CellView, View, Views


class SemanticContrast(Regularizer):
    """SePiCo's loss: contrast source and mixed cells with statistics of the teacher's source cells.

    Args:
        num_classes: K.
        channels: Channels of the embeddings.
        variant: What a cell is compared with: class means (`prototype`, ProtoCL), the means of the
            newest batches (`bank`, BankCL), or means and variances (`distribution`, DistCL).
        weight: Weight of the loss; 1 as published.
        start: First step with contrast, 3000 as published; statistics are updated from step 0.
        temperature: Temperature of the softmax; 100 as published, where the variants hardly differ.
        momentum: See `ClassStatistics`; 1 as published.
        bank_rows: Batch means to keep for each class, 200 as published; only used by `bank`.

    Raises:
        ValueError: The bank has less than one row.

    Reference:
        Xie et al., SePiCo (2023). Differs: the mixed view replaces augmented target images; the
        release has a further term on the mean embedding, weight 1, which is omitted here.
    """

    needs: frozenset[View] = frozenset({"source", "mixed", "teacher_source"})
    needs_embeddings: bool = True

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        variant: Literal["prototype", "bank", "distribution"],
        weight: float,
        start: int,
        temperature: float,
        momentum: float,
        bank_rows: int,
    ) -> None:
        super().__init__()
        if variant == "bank" and bank_rows < 1:
            raise ValueError(f"the bank needs at least one row, got {bank_rows}")
        self.variant, self.temperature = variant, temperature
        self.weight, self.start = weight, start
        self.statistics = ClassStatistics(
            num_classes,
            channels,
            momentum=momentum,
            bank_rows=bank_rows if variant == "bank" else 0,
        )

    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss; the statistics already include the source of this step."""
        source, mixed, teacher = _required_views(views)
        if views.step < self.start:
            # keep the head in the graph, so that every step trains the same parameters
            return 0.0 * (_flatten(source)[0].sum() + _flatten(mixed)[0].sum())
        state = self.statistics.preview_update(*_flatten(teacher))
        return self._weighted_mean(source, state) + self._weighted_mean(mixed, state)

    def update(self, views: Views) -> None:
        """Update the statistics with the teacher's embeddings of this step's source."""
        self.statistics.update(*_flatten(_required_views(views)[2]))

    def _weighted_mean(self, view: CellView, state: StatisticsState) -> Tensor:
        cells = _flatten(view)
        match self.variant:
            case "prototype":
                total, count = prototype_sum(*cells, state.means, state.seen, self.temperature)
            case "bank":
                total, count = bank_sum(*cells, state.rows, state.filled, self.temperature)
            case "distribution":
                total, count = distribution_sum(
                    *cells, state.means, state.variances, state.seen, self.temperature
                )
            case _:
                assert_never(self.variant)
        return self.weight * total / mean_divisor(count)


def _required_views(views: Views) -> tuple[CellView, CellView, CellView]:
    source, mixed, teacher = views.source, views.mixed, views.teacher_source
    if source is None or mixed is None or teacher is None:
        raise UdasegError("semantic contrast needs the source, mixed and teacher's source views")
    return source, mixed, teacher


def _flatten(view: CellView) -> tuple[Tensor, Tensor]:
    """Return embeddings (B h w, D) and labels (B h w,)."""
    if view.embeddings is None:
        raise UdasegError("semantic contrast needs embeddings; use a network with a projector")
    return view.embeddings.permute(0, 2, 3, 1).flatten(0, 2), view.labels.flatten()
