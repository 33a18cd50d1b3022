"""Optimisers, and the learning rate as a function of the step, without scheduler state."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn


class Trainer(Protocol):
    """The methods of an optimiser, or of several, that the loop and checkpoints use."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, each with `base_lr` and `name`."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        ...

    def step(self) -> Any:
        """Update the parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return `state` by parameter number, and `param_groups`."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        ...


class Together:
    """Several optimisers that step together and are saved like one.

    Args:
        members: At least one optimiser; no two share a parameter.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all members, in order."""
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all members."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update the parameters of all members."""
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Any]:
        """Return one state, with parameters numbered across all members."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        offset = 0
        for member in self.members:
            member_state = member.state_dict()
            state |= {number + offset: value for number, value in member_state["state"].items()}
            for group in member_state["param_groups"]:
                groups.append({**group, "params": [n + offset for n in group["params"]]})
            offset += _count(member_state)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned into the members."""
        offset = first = 0
        for member in self.members:
            member_state = member.state_dict()
            count, last = _count(member_state), first + len(member_state["param_groups"])
            state = state_dict["state"].items()
            member.load_state_dict(
                {
                    "state": {n - offset: v for n, v in state if offset <= n < offset + count},
                    "param_groups": [
                        {**group, "params": [n - offset for n in group["params"]]}
                        for group in state_dict["param_groups"][first:last]
                    ],
                }
            )
            offset, first = offset + count, last


def _count(state: dict[str, Any]) -> int:
    return sum(len(group["params"]) for group in state["param_groups"])


def discriminator_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], lr: float
) -> torch.optim.Optimizer:
    """Return Adam with betas 0.9 and 0.99, as in the training of output-space discriminators."""
    group = {"params": list(named), "lr": lr, "base_lr": lr, "name": "discriminator"}
    return torch.optim.Adam([group], lr=0.0, betas=(0.9, 0.99), fused=True)


def optimizer(
    kind: Literal["sgd", "adamw"],
    groups: Sequence[tuple[str, float, Iterable[tuple[str, nn.Parameter]]]],
    *,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return a fused optimiser over named parameter groups.

    Args:
        kind: `sgd` or `adamw`.
        groups: Name, learning rate and named parameters of each group; empty groups are dropped.
        momentum: Momentum of SGD, beta 1 of AdamW.
        weight_decay: Weight decay of all groups.
    """
    specs = []
    for name, rate, named in groups:
        parameters = list(named)
        if parameters:
            specs.append({"params": parameters, "lr": rate, "base_lr": rate, "name": name})
    if kind == "sgd":
        return torch.optim.SGD(
            specs, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    return torch.optim.AdamW(
        specs, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True
    )


def rate_factor(step: int, steps: float, *, power: float, warmup: int) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up times polynomial decay."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    decay: float = (1 - step / steps) ** power
    return rise * decay


def set_rate(optimizer: Trainer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
