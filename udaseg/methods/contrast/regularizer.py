"""The contract of a regularizer: a term of the loss that compares views of a step."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from udaseg.methods.views import View, Views


class Regularizer(nn.Module, ABC):
    """A loss term that compares views; `forward` computes it, `update` changes its state.

    All state is in persistent buffers. `needs` names the views that it reads, `needs_embeddings`
    says whether they need embeddings.
    """

    needs: frozenset[View]
    needs_embeddings: bool
    square_per: Literal["image", "batch"] = "image"
    keys_by_student_head: bool = False

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """Return the weighted loss, a scalar; change no state."""

    @abstractmethod
    def update(self, views: Views) -> None:
        """Update the state, once per step after the optimiser, identically on all ranks."""
