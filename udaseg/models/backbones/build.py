"""Builds a backbone by its name in a recipe.

A new one is a module in this folder with a function `build`, and a line in `BACKBONES` of
`udaseg/recipe/schema.py`. That table is there because checking a recipe must not import torch.
"""

from collections.abc import Sequence
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
    caffe_form_refusal,
    has_caffe_form,
    load_into,
    own_backbone,
    read_state_dict,
)
from udaseg.plugins import find_plugin, list_plugins
from udaseg.recipe.schema import BACKBONES, TIMM_PREFIX
from udaseg.text import did_you_mean

_DEFAULT = BackboneOptions()


def build_backbone(
    name: str,
    *,
    output_stride: int = 16,
    weights: str = "imagenet",
    levels: Sequence[int] | None = None,
    options: BackboneOptions = _DEFAULT,
) -> Backbone:
    """Return a backbone with its weights loaded.

    Args:
        name: One of `BACKBONES`, `timm:` and a name of timm, or a name in the entry points
            `udaseg.backbones` of an installed package. Such an entry point is called as
            `build(output_stride=..., weights=...)`, and returns a `Backbone`.
        output_stride: 8, 16 or 32.
        weights: `imagenet`, `random`, or the path of a weights file: one of the network's own
            package, or of `udaseg export --format state-dict`.
        levels: Positions of the maps that are needed, such as (0, -1) for the first and the last;
            None for all. Only these are returned, and described by `channels` and `strides`, so
            that others do not stay in memory. Backbones of other packages return all.
        options: How the network is computed and its weights are loaded.

    Raises:
        RecipeError: The name is unknown.
        CheckpointError: The weights file belongs to another network.
        EnvironmentFault: torchvision, timm, or the ImageNet weights are not available, or another
            package breaks the contract of `Backbone`.

    Example:
        >>> import torch
        >>> from udaseg.models import build_backbone
        >>> backbone = build_backbone("mobilenet_v2", output_stride=16, weights="random")
        >>> backbone.channels, backbone.strides
        ((24, 32, 96, 320), (4, 8, 16, 16))
        >>> [tuple(each.shape[-2:]) for each in backbone(torch.zeros(1, 3, 128, 256))]
        [(32, 64), (16, 32), (8, 16), (8, 16)]
    """
    file = None if weights in ("imagenet", "random") else Path(weights)
    tensors = {} if file is None else _readable(file)
    if has_caffe_form(tensors) and (options.input, options.stride_in) != ("caffe", "1x1"):
        raise caffe_form_refusal(weights)
    own = own_backbone(tensors)
    backbone = _build_named(
        name,
        output_stride=output_stride,
        weights=weights if own is None else "random",
        levels=levels,
        options=options,
    )
    if options.input == "caffe":
        backbone.mean, backbone.std, backbone.bgr = CAFFE_MEAN, CAFFE_STD, True
    if own is not None:
        if not torch.allclose(tensors["std"].flatten(), torch.tensor(backbone.std)):
            given = "caffe" if options.input == "imagenet" else "imagenet"
            raise CheckpointError(
                f"{weights}: its network takes images in another range; set model.input={given}"
            )
        load_into(backbone, own, origin=weights, partial=options.weights_partial)
    return backbone


def _readable(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; none if it is one that only another package may read."""
    try:
        return read_state_dict(path)
    except CheckpointError:
        return {}


def _build_named(
    name: str,
    *,
    output_stride: int,
    weights: str,
    levels: Sequence[int] | None,
    options: BackboneOptions,
) -> Backbone:
    """Return the backbone of a name; `weights` is no file of `udaseg export`."""
    module = "timm" if name.startswith(TIMM_PREFIX) else BACKBONES.get(name)
    if module is not None:
        build = import_module(f"udaseg.models.backbones.{module}").build
        built: Backbone = build(
            name, output_stride=output_stride, weights=weights, levels=levels, options=options
        )
        return built
    plugin = find_plugin("udaseg.backbones", name)
    if plugin is not None:
        return plugin_backbone(plugin, output_stride=output_stride, weights=weights)
    known = [*BACKBONES, *(each.name for each in list_plugins("udaseg.backbones"))]
    hint = did_you_mean(name, known)
    meant = "" if hint is None else f"did you mean '{hint}'? "
    listed = ", ".join([*BACKBONES, f"{TIMM_PREFIX}NAME"])
    raise RecipeError(f"model.backbone: unknown '{name}'; {meant}choose one of {listed}")
