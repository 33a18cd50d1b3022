"""Optimisers, and the learning rate as a function of the step, without scheduler state."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.objective import Objective
from udaseg.recipe.schema import Optimizer as OptimizerSpec
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage, recipe_of_stage, stages_of
from udaseg.runs.checkpoint import SavesState


class JointOptimizer:
    """Several optimisers that step together and are saved like one; no two share a parameter."""

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
            own = member.state_dict()
            state |= {number + offset: value for number, value in own["state"].items()}
            groups += _shift(own["param_groups"], offset)
            offset += _parameter_count(own)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned into the members."""
        offset = first = 0
        for member in self.members:
            own = member.state_dict()
            end, last = offset + _parameter_count(own), first + len(own["param_groups"])
            state = {n - offset: v for n, v in state_dict["state"].items() if offset <= n < end}
            groups = _shift(state_dict["param_groups"][first:last], -offset)
            member.load_state_dict({"state": state, "param_groups": groups})
            offset, first = end, last


class RepeatingSGD(torch.optim.SGD):
    """SGD that takes as many steps for a group, with one gradient, as the group's `times` says.

    A loop over parameters, as in the torch of 2020, does this for a tensor that is listed n times.
    Of momentum m, n steps keep m^n: 0.729 of 0.9 for 3, 0.6561 for 4. One gradient moves a tensor
    in all by n / (1 - m) times the rate. So they are close to one step with momentum m^n and the
    rate times n (1 - m^n) / (1 - m), 8.1 for 3 and 13.8 for 4.
    """

    def step(self) -> None:  # type: ignore[override]  # no closure
        """Update the parameters of all groups."""
        groups = self.param_groups
        for taken in range(max(group["times"] for group in groups)):
            self.param_groups = [group for group in groups if group["times"] > taken]
            super().step()
        self.param_groups = groups


def _shift(groups: Iterable[dict[str, Any]], offset: int) -> list[dict[str, Any]]:
    """Return parameter groups with other numbers of their parameters."""
    return [{**group, "params": [n + offset for n in group["params"]]} for group in groups]


def _parameter_count(state: dict[str, Any]) -> int:
    return sum(len(group["params"]) for group in state["param_groups"])


def build_discriminator_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], lr: float
) -> torch.optim.Optimizer:
    """Return Adam with betas 0.9 and 0.99, as in the training of output-space discriminators."""
    group = {"params": list(named), "lr": lr, "base_lr": lr, "name": "discriminator"}
    return torch.optim.Adam([group], lr=0.0, betas=(0.9, 0.99), fused=True)


def make_optimizer(
    kind: Literal["sgd", "adamw"],
    groups: Sequence[tuple[str, float, Iterable[tuple[str, nn.Parameter]]]],
    *,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return a fused optimiser over groups: name, learning rate and named parameters.

    `momentum` is beta 1 of AdamW. Empty groups are dropped.
    """
    specs = [
        {"params": parameters, "lr": rate, "base_lr": rate, "name": name}
        for name, rate, named in groups
        if (parameters := list(named))
    ]
    if kind == "sgd":
        return torch.optim.SGD(
            specs, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    return torch.optim.AdamW(
        specs, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True
    )


def learning_rate_factor(step: int, steps: float, *, power: float, warmup: int) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up times polynomial decay."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    decay: float = (1 - step / steps) ** power
    return rise * decay


def set_learning_rate(optimizer: SavesState, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def build_optimizer(recipe: Recipe, objective: Objective, stage: Stage | None = None) -> SavesState:
    """Return the optimiser; it holds each trainable parameter exactly once."""
    stage, student = stage or stages_of(recipe)[0], objective.student
    spec = recipe_of_stage(recipe, stage).optimizer
    backbone = _trained("backbone", student.backbone)
    head = [*_trained("head", student.head), *_trained("projector", student.projector)]
    backbone_rate, head_rate = spec.lr * spec.backbone_lr_mult, spec.lr * spec.head_lr_mult
    first: torch.optim.Optimizer
    if spec.repeated == "released":
        first = _make_repeating(spec, backbone_rate, backbone, head_rate, head)
    else:
        first = make_optimizer(
            spec.kind,
            [("backbone", backbone_rate, backbone), ("head", head_rate, head)],
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
    combined: SavesState = first
    if isinstance(objective, Adversarial):
        named = objective.discriminator.named_parameters(prefix="discriminator")
        rate = objective.spec.discriminator_lr
        combined = JointOptimizer([first, build_discriminator_optimizer(named, rate)])
    held = [id(parameter) for group in combined.param_groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in objective.parameters() if parameter.requires_grad}
    if len(held) != len(set(held)) or set(held) != trainable:
        raise RuntimeError("the optimiser does not hold every trained parameter exactly once")
    return combined


def _make_repeating(
    spec: OptimizerSpec,
    backbone_rate: float,
    backbone: Iterable[tuple[str, nn.Parameter]],
    head_rate: float,
    head: Sequence[tuple[str, nn.Parameter]],
) -> RepeatingSGD:
    """Return SGD over the backbone in groups by how often the releases list a tensor, and the head.

    For each module in the stem or a layer, they list all parameters below it: one of
    `low.0.weight` (the stem) once, of `low.4.0.conv1.weight` (in layer 1, its block 0 and itself)
    three times, of `low.4.0.downsample.0.weight` four times.
    """
    groups: dict[int, dict[str, Any]] = {}
    for name, parameter in backbone:
        times = name.count(".") - 2  # those of `backbone.low.`, and one before the parameter itself
        name_of_group = "backbone" if times == 1 else f"backbone_{times}"
        group = {"params": [], "lr": backbone_rate, "name": name_of_group, "times": times}
        groups.setdefault(times, group)["params"].append((name, parameter))
    specs = [groups[times] for times in sorted(groups)]
    specs.append({"params": list(head), "lr": head_rate, "name": "head", "times": 1})
    for each in specs:
        each["base_lr"] = each["lr"]
    return RepeatingSGD(
        specs, lr=0.0, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    )


def _trained(prefix: str, module: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    named = () if module is None else module.named_parameters(prefix=prefix)
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]
