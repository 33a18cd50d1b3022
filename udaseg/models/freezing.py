"""Parts of a network that do not learn."""

from collections.abc import Collection

from torch import nn

from udaseg.errors import RecipeError
from udaseg.models.backbones.backbone import Backbone
from udaseg.recipe.schema import Model


def frozen_parameters(backbone: Backbone, spec: Model) -> frozenset[str]:
    """Return the names of the parameters of a backbone that a recipe does not train.

    Raises:
        RecipeError: `model.frozen_stages` leaves no stage that learns.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if spec.train == "head":
        return frozenset(names)
    if spec.frozen_stages == 0:
        return frozenset()
    ends = backbone.stage_ends
    if spec.frozen_stages >= len(ends):
        must = f"below {len(ends)}, the number of its stages" if ends else "0: it names no stages"
        raise RecipeError(
            f"model.frozen_stages: for {spec.backbone}, must be {must}, got {spec.frozen_stages}; "
            "model.train=head freezes the whole backbone"
        )
    last = ends[spec.frozen_stages - 1]
    return frozenset(name for name in names if backbone.layer_of(name) <= last)


def freeze(module: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """Freeze the named parameters of a module, in place; return the parts that have no others.

    The caller keeps those parts in evaluation mode, with the dropouts and norms in them.
    """
    frozen = {id(part) for name, part in module.named_parameters() if name in names}
    for parameter in module.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    return _parts_of(module, frozen)


def _parts_of(module: nn.Module, frozen: Collection[int]) -> list[nn.Module]:
    """Return the largest parts of a module that have parameters, all of them among `frozen`."""
    if not (own := [id(parameter) in frozen for parameter in module.parameters()]):
        return []
    if all(own):
        return [module]
    return [part for child in module.children() for part in _parts_of(child, frozen)]
