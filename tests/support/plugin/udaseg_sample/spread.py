"""A regularizer that keeps the features of the target as spread out as those of the source."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from udaseg.contrast import MIXED, SOURCE, Need, Regularizer, Views, flatten_cells


@dataclass(frozen=True)
class Spread:
    """Settings of `SpreadFeatures`."""

    weight: Annotated[float, Ge(0)]
    """Weight of the term."""

    momentum: Annotated[float, Interval(ge=0, le=1)] = 0.9
    """Share of the old standard deviation that is kept at an update."""


class SpreadFeatures(Regularizer):
    """Penalise channels that vary less on mixed images than on the source."""

    spec_class = Spread
    needs = (Need(SOURCE), Need(MIXED))
    deviation: Tensor

    def __init__(self, spec: Spread, *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("deviation", torch.zeros(channels))

    def forward(self, views: Views) -> Tensor:
        """Return the weighted mean shortfall of the standard deviation."""
        spread = flatten_cells(views[MIXED].features).std(0)
        return self.spec.weight * (self.deviation - spread).clamp_min(0).mean() + 0 * spread.sum()

    @torch.no_grad()
    def update(self, views: Views) -> None:
        """Move the remembered deviation towards that of this step's source."""
        current = flatten_cells(views[SOURCE].features).std(0)
        self.deviation.lerp_(current, 1 - self.spec.momentum)
