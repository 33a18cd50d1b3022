"""The scalars of a step as numbers on the host."""

import torch

from udaseg.distributed import all_reduce_mean
from udaseg.methods.objectives.objective import LossReport


def mean_scalars(report: LossReport) -> dict[str, float]:
    """Return losses and figures as means over ranks; one reduction, and one wait for the device."""
    values = {"total": report.total, **report.parts, **report.figures}
    # float64 holds each of them exactly
    stacked = torch.stack([value.detach().double() for value in values.values()])
    return dict(zip(values, all_reduce_mean(stacked).tolist(), strict=True))
