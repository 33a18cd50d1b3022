"""Backbones from torchvision: a classification network without its classifier, dilated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from udaseg.errors import EnvironmentFault
from udaseg.models.backbones.backbone import at_levels
from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.weights import load_into, read_state_dict


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


def build(
    name: str, *, output_stride: int, weights: str, levels: Sequence[int] | None = None
) -> SequentialBackbone:
    """Return a torchvision network with maps at strides 4, 8, 16 and 32, or less where dilated.

    Args:
        name: Name of the network in torchvision; one of those with a layout above.
        output_stride: 8, 16 or 32.
        weights: `imagenet`, `random`, or the path of a weights file.
        levels: Positions of the maps to return; None for all.

    Raises:
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: torchvision or the ImageNet weights are not available.
    """
    layout = _LAYOUTS[name]
    network = _network(name, weights)
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
    ends = (layout.low, layout.at_16, layout.at_32, layout.end)
    return SequentialBackbone(
        nn.Sequential(*stages[: layout.low]),
        nn.Sequential(*stages[layout.low : layout.end]),
        ends=at_levels([end - layout.low for end in ends], levels),
        channels=at_levels([_last_channels(stages[end - 1]) for end in ends], levels),
        strides=at_levels([min(stride, output_stride) for stride in (4, 8, 16, 32)], levels),
    )


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


def _network(name: str, weights: str) -> nn.Module:
    """Return the classification network with its weights loaded."""
    models = _torchvision()
    network: nn.Module = getattr(models, name)(weights=None)
    if weights == "imagenet":
        enum, member = _LAYOUTS[name].weights
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
    return network


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


def _last_channels(stage: nn.Module) -> int:
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    # the last norm of a ResNet stage may belong to a shortcut, which has the width of the block
    return norms[-1].num_features
