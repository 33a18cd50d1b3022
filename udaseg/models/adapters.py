"""Low-rank adapters (LoRA): small matrices beside the frozen weights of a backbone.

The frozen weights are the base. A checkpoint leaves out those of them that a weights file has.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.errors import RecipeError
from udaseg.models.backbones.backbone import Backbone
from udaseg.recipe.schema import Adapters

_PLACES = {
    "attention": ("attn", "attention", "self_attn"),
    "mlp": ("mlp", "ffn"),
}
"""Names of the modules that have a linear layer as a part, for each word of `model.adapters.on`."""


class LowRankLinear(nn.Linear):
    """A linear layer with the weight W + (alpha / rank) B A: B, at first 0, and A are trained.

    In training, B A x is added to W x, so that no gradient of the size of W is formed. In
    evaluation mode, and for whoever reads `weight`, the sum is formed first, so that outputs equal
    those of the merged layer to the bit. In a state dict, `weight` is W.

    Attributes:
        lora_a: A, (rank, inputs).
        lora_b: B, (outputs, rank).
        scale: alpha / rank.

    Source:
        Hu et al., LoRA (2021).
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # torch stores the parameter elsewhere
        """The sum of base and adapter, (outputs, inputs)."""
        base = self._base()
        with torch.autocast(base.device.type, enabled=False):
            return torch.addmm(base, self.lora_b, self.lora_a, alpha=self.scale)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return (..., outputs) of (..., inputs)."""
        if not self.training:
            return F.linear(input, self.weight, self.bias)
        update = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return F.linear(input, self._base(), self.bias) + self.scale * update

    def _base(self) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return weight


def add_adapters(backbone: Backbone, spec: Adapters) -> None:
    """Give the linear layers of a backbone's blocks adapters, and freeze all else but its norms.

    No output changes. The base weights that were read from a file become `backbone.base_names`.

    Raises:
        RecipeError: The backbone has no such layer.

    Example:
        >>> from udaseg.models import build_backbone
        >>> from udaseg.models.adapters import add_adapters
        >>> from udaseg.recipe.schema import Adapters
        >>> body = build_backbone("timm:convnext_atto", weights="random")
        >>> add_adapters(body, Adapters(on=("mlp",)))
        >>> body.network.stages_0.blocks[0].mlp.fc1.lora_a.shape
        torch.Size([8, 40])
    """
    parents = {name for place in spec.on for name in _PLACES[place]}
    chosen = [
        part
        for name, part in backbone.named_modules()
        # not subclasses: they may do more with a weight than one product
        if type(part) is nn.Linear and name.rpartition(".")[0].rpartition(".")[2] in parents
    ]
    if not chosen:
        raise RecipeError(
            f"model.adapters: this backbone has no linear layers in its {' or '.join(spec.on)} "
            "blocks; use one with such layers (a ViT has both, a ConvNeXt has mlp), or "
            "model.train=all or head"
        )
    norms = [part for part in backbone.modules() if _is_norm(part)]
    trained = {id(value) for norm in norms for value in norm.parameters(recurse=False)}
    frozen = [
        (name, value) for name, value in backbone.named_parameters() if id(value) not in trained
    ]
    for _, value in frozen:
        value.requires_grad_(False)
    for part in chosen:
        _adapt(part, spec)
    backbone.base_names = frozenset(dict(frozen)) & _names_in_file(backbone)
    hooked: Any = backbone  # torch has no types for these two
    hooked.register_state_dict_post_hook(_leave_out_base)
    hooked.register_load_state_dict_pre_hook(_fill_in_base)


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters of a network to its weights, so that it is one without adapters again.

    In evaluation mode no output changes.
    """
    for part in network.modules():
        if isinstance(part, LowRankLinear):
            with torch.no_grad():
                part._base().copy_(part.weight)
            del part.lora_a, part.lora_b, part.scale
            part.__class__ = nn.Linear  # type: ignore[assignment]  # as it was before
    hold_base(network)


def hold_base(module: nn.Module) -> None:
    """Have the state dicts of all networks in a module hold their base weights too."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.base_names = frozenset()


def leave_out_frozen(module: nn.Module) -> None:
    """Have the state dicts leave out all frozen weights of adapted networks.

    That is what they do if these were read from a file, which is not read for an estimate.
    """
    for body in module.modules():
        if isinstance(body, Backbone):
            adapted = any(isinstance(part, LowRankLinear) for part in body.modules())
            frozen = [name for name, value in body.named_parameters() if not value.requires_grad]
            body.base_names = frozenset(frozen if adapted else ())


def _adapt(part: nn.Linear, spec: Adapters) -> None:
    """Make a linear layer a `LowRankLinear`, with the start of the authors' code."""
    like = part.weight
    part.__class__ = LowRankLinear
    assert isinstance(part, LowRankLinear)
    part.scale = spec.alpha / spec.rank
    part.lora_a = nn.Parameter(like.new_empty(spec.rank, part.in_features))
    part.lora_b = nn.Parameter(like.new_zeros(part.out_features, spec.rank))
    nn.init.kaiming_uniform_(part.lora_a, a=math.sqrt(5))


def _is_norm(part: nn.Module) -> bool:
    """Return whether a module is a norm; those of timm are not all subclasses of torch's."""
    return "norm" in type(part).__name__.lower()


def _names_in_file(backbone: Backbone) -> frozenset[str]:
    """Return the names of the tensors that `load_into` found in a weights file."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, part in backbone.named_modules()
        for name in getattr(part, "names_in_file", ())
    )


def _leave_out_base(
    backbone: Backbone, state: dict[str, Tensor], prefix: str, _: Mapping[str, Any]
) -> None:
    for name in backbone.base_names:
        del state[prefix + name]


def _fill_in_base(backbone: Backbone, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a state dict without the base be loaded strictly."""
    if backbone.base_names:
        own = dict(backbone.named_parameters())
        for name in backbone.base_names:
            state.setdefault(prefix + name, own[name].detach())
