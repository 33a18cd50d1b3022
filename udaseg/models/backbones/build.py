"""Builds a backbone by its name in a recipe.

A new one is a module in this folder with a function `build`, and a line in `BACKBONES` of
`udaseg/recipe/schema.py`. That table is there because checking a recipe must not import torch.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from udaseg.errors import CheckpointError, RecipeError
from udaseg.models.backbones.backbone import (
    CAFFE_MEAN,
    CAFFE_STD,
    Backbone,
    BackboneOptions,
)
from udaseg.models.backbones.plugin import plugin_backbone
from udaseg.models.weights import (
    WeightsFile,
    caffe_form_refusal,
    has_caffe_form,
    own_backbone,
    read_state_dict,
)
from udaseg.plugins import find_plugin
from udaseg.recipe.extensions import unknown_backbone
from udaseg.recipe.schema import BACKBONES, NAMED_WEIGHTS, TIMM_PREFIX

_DEFAULT = BackboneOptions()


def build_backbone(
    name: str,
    *,
    output_stride: int = 16,
    weights: str = "pretrained",
    levels: Sequence[int] | None = None,
    options: BackboneOptions = _DEFAULT,
) -> Backbone:
    """Return a backbone with its weights loaded.

    Args:
        name: One of `BACKBONES`, `timm:` and a name of timm, or a name in the entry points
            `udaseg.backbones` of an installed package. Such an entry point is called as
            `build(output_stride=..., weights=...)`, and returns a `Backbone`.
        output_stride: 8, 16 or 32: a wish. A network without dilation keeps its own; see `strides`.
        weights: `pretrained` asks torchvision or timm for the network's own weights (`imagenet` is
            an older word for it); `random`; or the path of a weights file: one of the network's
            own package or release, or of `udaseg export --format state-dict`.
        levels: Positions of the maps that are needed, such as (0, -1) for the first and the last;
            None for all. Only these are returned, and described by `channels` and `strides`, so
            that others do not stay in memory. Backbones of other packages return all.
        options: How the network is computed and its weights are loaded.

    Raises:
        RecipeError: The name is unknown.
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: torchvision, timm, or the network's own weights are not available, or
            another package breaks the contract of `Backbone`.

    Example:
        >>> import torch
        >>> from udaseg.models import build_backbone
        >>> backbone = build_backbone("mobilenet_v2", output_stride=16, weights="random")
        >>> backbone.channels, backbone.strides
        ((24, 32, 96, 320), (4, 8, 16, 16))
        >>> [tuple(each.shape[-2:]) for each in backbone(torch.zeros(1, 3, 128, 256))]
        [(32, 64), (16, 32), (8, 16), (8, 16)]
    """
    start: str | WeightsFile = "pretrained" if weights == "imagenet" else weights
    own = None
    if weights not in NAMED_WEIGHTS:
        tensors = _tensors(Path(weights), lenient=_module(name) is None)
        if has_caffe_form(tensors) and (options.input, options.stride_in) != ("caffe", "1x1"):
            raise caffe_form_refusal(weights)
        own = own_backbone(tensors)
        start = "random" if own else WeightsFile(weights, tensors, options.weights_partial)
    backbone = _build_named(
        name, output_stride=output_stride, weights=start, levels=levels, options=options
    )
    if options.input == "caffe":
        backbone.mean, backbone.std, backbone.bgr = CAFFE_MEAN, CAFFE_STD, True
    if own is not None:
        _load_own(backbone, WeightsFile(weights, own, options.weights_partial), tensors)
    return backbone


def _tensors(path: Path, *, lenient: bool) -> dict[str, Tensor]:
    """Return the tensors of a file; if lenient, none if only another package can read it."""
    try:
        return read_state_dict(path)
    except CheckpointError:
        if lenient:
            return {}
        raise


def _load_own(backbone: Backbone, own: WeightsFile, tensors: Mapping[str, Tensor]) -> None:
    """Load the backbone of an exported network, with the normalisation of its images."""
    mean, std = (tensors[name].flatten() for name in ("mean", "std"))
    is_same = torch.allclose(std, torch.tensor(backbone.std))
    is_caffe = torch.allclose(std, torch.tensor(CAFFE_STD))
    if not is_same and (is_caffe or backbone.bgr):
        raise CheckpointError(
            f"{own.path}: its network takes images in another range; "
            f"set model.input={'caffe' if is_caffe else 'imagenet'}"
        )
    own.load_into(backbone)
    backbone.mean, backbone.std = tuple(mean.tolist()), tuple(std.tolist())


def _module(name: str) -> str | None:
    """Return the module of a built-in backbone; None for one of another package."""
    return "timm" if name.startswith(TIMM_PREFIX) else BACKBONES.get(name)


def _build_named(
    name: str,
    *,
    output_stride: int,
    weights: str | WeightsFile,
    levels: Sequence[int] | None,
    options: BackboneOptions,
) -> Backbone:
    """Return the backbone of a name; `weights` is `pretrained`, `random` or a file."""
    module = _module(name)
    if module is not None:
        build = import_module(f"udaseg.models.backbones.{module}").build
        built: Backbone = build(
            name, output_stride=output_stride, weights=weights, levels=levels, options=options
        )
        return built
    plugin = find_plugin("udaseg.backbones", name)
    if plugin is not None:
        # other packages know the older word, and read files of their own
        path = weights.path if isinstance(weights, WeightsFile) else weights
        path = "imagenet" if path == "pretrained" else path
        return plugin_backbone(plugin, output_stride=output_stride, weights=path)
    raise RecipeError(f"model.backbone: {unknown_backbone(name)}")
