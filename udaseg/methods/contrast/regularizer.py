"""The contract of a regularizer: a term of the loss that compares views of a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from udaseg.distributed import RankSums, divisor_of_total, mean_divisor, world_size
from udaseg.methods.views import STUDENT_VIEWS, Need, View, Views


class Regularizer(nn.Module, ABC):
    """A loss term that compares views; `forward` computes it, `update` changes its state.

    All state is in persistent buffers, so that it is saved in checkpoints. `forward` is called once
    a step, when all its views exist. If several of them come from the student, their graphs live
    until then; if the loss is a sum over views, `PerViewRegularizer` needs less memory.

    Attributes:
        needs: The views that `forward` and `update` read.
    """

    needs: Sequence[Need]

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss, a scalar; change no state."""

    def local_counts(self, views: Views) -> Tensor | None:  # noqa: ARG002 (one contract)
        """Return what its means divide by, on this rank; by default None.

        Called with several ranks only, before the student's passes: `views` holds the views of the
        teacher, and `views.labels` those labels that the student's will have. The sum over ranks is
        `views.totals[self]`, so that the loss needs no reduction of its own.
        """
        return None

    def divisor(
        self, views: Views, count: Tensor, counted: Callable[[Tensor], Tensor] = lambda total: total
    ) -> Tensor:
        """Return what turns a sum over `count` local items into a term of a mean over all ranks.

        It is `mean_divisor(count)`, but needs no reduction if `local_counts` were summed before.

        Args:
            views: Those of the step.
            count: Scalar, the number of items on this rank.
            counted: Returns the number of items on all ranks from the sum of `local_counts`.
        """
        if self not in views.totals:
            return mean_divisor(count)
        return divisor_of_total(counted(views.totals[self]))

    def update(self, views: Views) -> None:
        """Update the state, once per step after the optimiser, identically on all ranks."""

    def student_views(self) -> list[View]:
        """Return the views that it needs from the student, in the order in which they are made."""
        needed = {need.view for need in self.needs}
        return [view for view in STUDENT_VIEWS if view in needed]


class PerViewRegularizer(Regularizer):
    """A regularizer whose loss is a sum of one term for each view of the student.

    Each term is computed as soon as its view exists, and the graph of the view is freed before the
    student makes the next one.
    """

    @abstractmethod
    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted term of one student view, a scalar; change no state.

        Args:
            view: One of `student_views()`.
            views: All views of the teacher, and those of the student up to `view`; only `view`
                has a graph. The same object in all calls of a step.
        """

    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss, a scalar; change no state."""
        return torch.stack([self.view_loss(view, views) for view in self.student_views()]).sum()


def reduce_with_counts(
    sums: RankSums, views: Views, terms: Mapping[str, Regularizer], **numbers: Tensor
) -> Mapping[str, Tensor]:
    """Return `sums.reduce(**numbers)`; also sum what regularizers divide by into `views.totals`."""
    counts = {}
    if world_size() > 1:
        found = {name: term.local_counts(views) for name, term in terms.items()}
        counts = {name: count for name, count in found.items() if count is not None}
    totals = sums.reduce(**numbers, **counts)
    views.totals.update({terms[name]: totals[name] for name in counts})
    return totals
