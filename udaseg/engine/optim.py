"""Optimisers and the learning rate as a function of the step: there is no scheduler state."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import nn


def optimizer(
    kind: Literal["sgd", "adamw"],
    groups: Sequence[tuple[str, float, Iterable[tuple[str, nn.Parameter]]]],
    *,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return a fused optimiser over named parameter groups.

    Args:
        kind: sgd or adamw.
        groups: Name, learning rate and named parameters of each group; empty groups are dropped.
        momentum: Momentum of SGD, beta 1 of AdamW.
        weight_decay: Of all groups.
    """
    described = []
    for name, rate, named in groups:
        parameters = list(named)
        if parameters:
            described.append({"params": parameters, "lr": rate, "base_lr": rate, "name": name})
    if kind == "sgd":
        return torch.optim.SGD(
            described, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    return torch.optim.AdamW(
        described, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True
    )


def rate_factor(step: int, steps: int, *, power: float, warmup: int) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up times polynomial decay."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    decay: float = (1 - step / steps) ** power
    return rise * decay


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
