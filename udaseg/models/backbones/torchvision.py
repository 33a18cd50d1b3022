"""Backbones from torchvision: a classification network without its classifier, dilated."""

import contextlib
import io
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from udaseg.errors import EnvironmentFault
from udaseg.models.backbones.backbone import BackboneOptions, at_levels
from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.pretrained import fetching, say_where
from udaseg.models.weights import WeightsFile

_ENDS = {
    "resnet18": (5, 6, 7, 8),
    "resnet50": (5, 6, 7, 8),
    "resnet101": (5, 6, 7, 8),
    "mobilenet_v2": (4, 7, 14, 18),
    "mobilenet_v3_large": (4, 7, 13, 17),
    "vgg16": (16, 23, 30, 31),
    "vgg16_bn": (23, 33, 43, 44),
}
"""Number of stages up to the maps at strides 4, 8, 16 and 32; a VGG's last stage is a pooling."""
_VGGS = ("vgg16", "vgg16_bn")


def build(
    name: str,
    *,
    output_stride: int,
    weights: str | WeightsFile,
    levels: Sequence[int] | None = None,
    options: BackboneOptions,
) -> SequentialBackbone:
    """Return one of the networks above; its strides are 4, 8, 16 and 32, or less where dilated.

    See `build_backbone`.
    """
    network = _network(name, weights)
    if name.startswith("resnet"):
        parts = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
        stages = [getattr(network, part) for part in parts]
    else:
        stages = list(network.features)  # type: ignore[arg-type]  # a Sequential, but typed as Module
    ends = low, stride_8, stride_16, stride_32 = _ENDS[name]
    if output_stride <= 16:
        dilate(stages[stride_16:stride_32], 32 // output_stride)
    if output_stride == 8:
        dilate(stages[stride_8:stride_16], 2)
    if name.startswith("resnet"):
        _follow(options, stages, network)
    elif name in _VGGS:
        _round_up(stages)
    backbone = SequentialBackbone(
        nn.Sequential(*stages[:low]),
        nn.Sequential(*stages[low:stride_32]),
        ends=at_levels([end - low for end in ends], levels),
        channels=at_levels([_last_channels(stages[:end]) for end in ends], levels),
        strides=at_levels([min(stride, output_stride) for stride in (4, 8, 16, 32)], levels),
        stages=[end - low for end in ends],
    )
    backbone.ceil_pool = options.ceil_pool
    return backbone


def dilate(stages: Iterable[nn.Module], rate: int) -> None:
    """Set all strides in `stages` to 1 and dilate spatial convolutions by `rate`, in place.

    All blocks get the same rate, including the first, as in DeepLab-v2. Poolings pass all cells on.
    """
    for module in itertools.chain.from_iterable(stage.modules() for stage in stages):
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            height, width = module.kernel_size
            if height > 1:
                module.dilation = (rate, rate)
                module.padding = (rate * (height // 2), rate * (width // 2))
        elif isinstance(module, nn.MaxPool2d):
            module.kernel_size = module.stride = 1


def _round_up(stages: Iterable[nn.Module]) -> None:
    """Have the poolings of a VGG round sizes up, as in Caffe, where its weights are from."""
    for module in stages:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True


def _follow(options: BackboneOptions, layers: Sequence[nn.Module], network: nn.Module) -> None:
    """Compute a dilated ResNet as the options say, in place; its weights do not change."""
    from torchvision.models.resnet import Bottleneck

    if options.first_dilation == "previous":
        for layer in layers[-2:]:
            for module in layer[0].modules():  # type: ignore[index]  # a Sequential of blocks
                if isinstance(module, nn.Conv2d) and module.dilation[0] > 1:
                    rate = module.dilation[0] // 2
                    module.dilation = module.padding = (rate, rate)
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = options.ceil_pool
        elif options.stride_in == "1x1" and isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _network(name: str, weights: str | WeightsFile) -> nn.Module:
    """Return the classification network with its weights loaded."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        # a torchvision built for another torch fails with RuntimeError while registering operators
        raise EnvironmentFault(
            f"torchvision does not match this version of torch ({error}); "
            "install a matching pair: pip install --upgrade torch torchvision"
        ) from error
    network: nn.Module = _vgg(name) if name in _VGGS else models.get_model(name, weights=None)
    if isinstance(weights, WeightsFile):
        weights.load_into(network)
    elif weights == "pretrained":
        published = models.get_model_weights(name)["IMAGENET1K_V1"]
        say_where(name, published.url, megabytes=published.meta["_file_size"])
        with fetching(name, published.url), contextlib.redirect_stderr(io.StringIO()):
            tensors = published.get_state_dict(progress=False)
        known = network.state_dict()
        network.load_state_dict({key: value for key, value in tensors.items() if key in known})
    return network


def _vgg(name: str) -> nn.Module:
    """Return a VGG without its classifier, which would take seconds to initialise."""
    from torchvision import models

    with torch.device("meta"):
        network: nn.Module = models.get_model(name, weights=None)
    network.classifier = nn.Identity()
    for part in network.to_empty(device="cpu").modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.Conv2d):  # as torchvision
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]  # it has one
    return network


def _last_channels(stages: Iterable[nn.Module]) -> int:
    parts = itertools.chain.from_iterable(stage.modules() for stage in stages)
    # the last one of a ResNet may belong to a shortcut, which has the width of the block
    return [part for part in parts if isinstance(part, nn.Conv2d)][-1].out_channels
