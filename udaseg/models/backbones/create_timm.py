"""Creates networks of timm, and says in a sentence why one cannot be had."""

from collections.abc import Mapping
from typing import Any

import timm

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.pretrained import fetching, own_weights
from udaseg.text import did_you_mean


def create_timm(
    name: str, *, pretrained: bool, drop_path: float, options: Mapping[str, Any]
) -> Any:
    """Return a network by timm's own name.

    Args:
        name: With or without the tag of its weights, such as `vit_small_patch14_dinov2.lvd142m`.
        pretrained: Load the weights of timm; they are downloaded.
        drop_path: Rate of stochastic depth of the last block.
        options: Further arguments of `timm.create_model`. A network without dilation keeps its own
            `output_stride`.

    Raises:
        RecipeError: There is no such network, or it is not one that gives feature maps.
        EnvironmentFault: Its weights cannot be downloaded.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        meant = "" if hint is None else f"; did you mean 'timm:{hint}'?"
        raise RecipeError(f"model.backbone: timm has no network '{name}'{meant}")
    options = {**options, "pretrained": pretrained, "drop_path_rate": drop_path}
    try:
        if not pretrained:
            return _create(name, options)
        with fetching(f"timm:{name}", own_weights(f"timm:{name}", timm.get_pretrained_cfg(name))):
            return _create(name, options)
    except (EnvironmentFault, RecipeError):
        raise
    except Exception as error:
        if "drop_path_rate" in str(error):
            problem = f"model.drop_path: timm:{name} has no drop path; set model.drop_path=0"
            raise RecipeError(problem) from error
        said = str(error) or type(error).__name__
        raise RecipeError(
            f"model.backbone: timm cannot build {name} as a backbone: {said}"
        ) from error


def _create(name: str, options: dict[str, Any]) -> Any:
    """Return the network; leave out what it does not know and need not know."""
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError) as error:
        unknown = "output_stride"  # VGG refuses it by an assertion without words
        if "drop_path_rate" in str(error) and not options.get("drop_path_rate"):
            unknown = "drop_path_rate"
        if unknown not in options:
            raise
        return _create(name, {key: value for key, value in options.items() if key != unknown})
