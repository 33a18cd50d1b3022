"""The contract of a regularizer: a term of the loss that compares views of a step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from udaseg.methods.views import Need, Views


class Regularizer(nn.Module, ABC):
    """A loss term that compares views; `forward` computes it, `update` changes its state.

    All state is in persistent buffers, so that it is saved in checkpoints.

    Attributes:
        needs: The views that `forward` and `update` read.
    """

    needs: Sequence[Need]

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss, a scalar; change no state."""

    def update(self, views: Views) -> None:
        """Update the state, once per step after the optimiser, identically on all ranks."""
