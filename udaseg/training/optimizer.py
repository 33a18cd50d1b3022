"""Optimisers, and the learning rate as a function of the step, without scheduler state."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from udaseg.distributed import world_size
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.objective import Objective
from udaseg.models.backbones.backbone import Backbone
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


class LateSGD(torch.optim.SGD):
    """SGD that takes a parameter whose first gradient comes later than those of others.

    Torch's fused SGD fails at it: it expects a momentum for all of them, or for none.
    """

    def step(self) -> None:  # type: ignore[override]  # no closure
        """Update the parameters of all groups."""
        if self.state:
            for part in [part for group in self.param_groups for part in group["params"]]:
                if part.grad is not None and part not in self.state:
                    # the momentum of its first step is then the gradient, as in torch
                    self.state[part]["momentum_buffer"] = torch.zeros_like(part.grad)
        super().step()


class RepeatingSGD(LateSGD):
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
    group = parameter_group("discriminator", lr, named)
    return torch.optim.Adam([group], lr=0.0, betas=(0.9, 0.99), fused=True)


def parameter_group(
    name: str, rate: float, named: Iterable[tuple[str, nn.Parameter]], **settings: Any
) -> dict[str, Any]:
    """Return a group of an optimiser: its name, learning rate and named parameters."""
    return {"params": list(named), "lr": rate, "base_lr": rate, "name": name, **settings}


def make_optimizer(
    kind: Literal["sgd", "adamw"],
    groups: Iterable[dict[str, Any]],
    *,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return a fused optimiser over groups; `momentum` is beta 1 of AdamW."""
    groups = list(groups)
    if kind == "adamw":
        return torch.optim.AdamW(
            groups, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True
        )
    sgd = RepeatingSGD if any("times" in group for group in groups) else LateSGD
    return sgd(groups, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True)


def learning_rate_factor(
    step: int, steps: float, *, power: float, warmup: int, floor: float = 0.0
) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up times polynomial decay.

    The warm-up rises from `floor` at step 0 to 1 at step `warmup`; a floor of 0 stands for
    1 / (warmup + 1), with which the first step moves too.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    if floor > 0 and step < warmup:
        rise = floor + (1 - floor) * step / warmup
    decay: float = (1 - step / steps) ** power
    return rise * decay


def set_learning_rate(optimizer: SavesState, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def build_optimizer(recipe: Recipe, objective: Objective, stage: Stage | None = None) -> SavesState:
    """Return the optimiser; it holds each trainable parameter exactly once."""
    stage = stage or stages_of(recipe)[0]
    spec = recipe_of_stage(recipe, stage).optimizer
    groups = _groups(spec, objective, rate_scale(spec, recipe.batch.source * world_size()))
    first = make_optimizer(
        spec.kind, groups, momentum=spec.momentum, weight_decay=spec.weight_decay
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


def rate_scale(spec: OptimizerSpec, images: int) -> float:
    """Return the factor of the learning rate for `images` labelled images a step."""
    return {"none": 1.0, "sqrt": math.sqrt(images), "linear": float(images)}[spec.scale_lr]


class _Place(NamedTuple):
    """What the parameters of a group have in common; groups are in the order of these values."""

    in_head: bool
    layer: int
    """Of the backbone, see `Backbone.layer_of`; 0 where its layers have one rate."""
    times: int
    undecayed: bool


def _groups(spec: OptimizerSpec, objective: Objective, scale: float) -> list[dict[str, Any]]:
    """Return the trained parameters of the student and of regularizers.

    They are grouped by rate, weight decay and repetition; those of regularizers with the head's.
    Groups that differ in weight decay alone share a name, which stands for a rate.
    """
    student, places = objective.student, dict[_Place, list[tuple[str, nn.Parameter]]]()
    regularizers = getattr(objective, "regularizers", nn.ModuleDict())
    for name, parameter in (
        *student.named_parameters(),
        *regularizers.named_parameters(prefix="regularizers"),
    ):
        if parameter.requires_grad:
            place = _place(spec, student.backbone, name, parameter)
            places.setdefault(place, []).append((name, parameter))
    groups = []
    for place, named in sorted(places.items()):
        label, rate = _rate(spec, student.backbone, place)
        settings: dict[str, Any] = {"times": place.times} if spec.repeated == "released" else {}
        if place.undecayed:
            settings["weight_decay"] = 0.0
        groups.append(parameter_group(label, rate * scale, named, **settings))
    return groups


def _rate(spec: OptimizerSpec, backbone: Backbone, place: _Place) -> tuple[str, float]:
    """Return the name of a group and its learning rate."""
    if place.in_head:
        return "head", spec.lr * spec.head_lr_mult
    rate, label = spec.lr * spec.backbone_lr_mult, "backbone"
    if spec.layer_decay < 1:
        rate *= spec.layer_decay ** (backbone.depth - place.layer)
        label = f"{label}_layer_{place.layer}"
    return (label if place.times == 1 else f"{label}_{place.times}"), rate


def _place(spec: OptimizerSpec, backbone: Backbone, name: str, parameter: nn.Parameter) -> _Place:
    """Return where a parameter of a network belongs.

    For each module in the stem or a layer, the releases list all parameters below it: one of
    `low.0.weight` (the stem) once, of `low.4.0.conv1.weight` (in layer 1, its block 0 and itself)
    three times, of `low.4.0.downsample.0.weight` four times.
    """
    part, _, inner = name.partition(".")
    in_backbone = part == "backbone"
    undecayed = spec.decay_on == "matrices" and (
        parameter.ndim < 2 or (in_backbone and inner in backbone.undecayed)
    )
    return _Place(
        in_head=not in_backbone,
        layer=backbone.layer_of(inner) if in_backbone and spec.layer_decay < 1 else 0,
        times=inner.count(".") - 1 if in_backbone and spec.repeated == "released" else 1,
        undecayed=undecayed,
    )
