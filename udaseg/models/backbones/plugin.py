"""Backbones of other packages, checked against the contract when they are built."""

import torch
from torch import Tensor

from udaseg.errors import EnvironmentFault, UdasegError
from udaseg.models.backbones.backbone import Backbone
from udaseg.plugins import Plugin

_SIZE = 64
"""Height and width of the image that a backbone is tried with: a multiple of every stride."""


def plugin_backbone(plugin: Plugin, *, output_stride: int, weights: str) -> Backbone:
    """Return the backbone that a plug-in builds; see `build_backbone`."""
    build = plugin.load()
    try:
        network = build(output_stride=output_stride, weights=weights)
        problem = _contract_problem(network)
    except UdasegError:
        raise
    except Exception as error:
        problem = f"fails with {type(error).__name__}: {error}"
        raise _fault(plugin, problem) from error
    if problem is not None:
        raise _fault(plugin, problem)
    checked: Backbone = network
    return checked


def _contract_problem(network: object) -> str | None:
    """Return how a network breaks the contract of `Backbone`, or None if it keeps it.

    The network computes the maps of one small image, in evaluation mode.
    """
    if not isinstance(network, Backbone):
        return f"is a {type(network).__name__}, not a udaseg.models.Backbone"
    return _attribute_problem(network) or _map_problem(network)


def _attribute_problem(network: Backbone) -> str | None:
    for name in ("channels", "strides"):
        values = getattr(network, name, None)
        if not isinstance(values, tuple) or not values:
            return f"has no tuple `{name}` with one number per map"
        if not all(isinstance(value, int) and value > 0 for value in values):
            return f"has `{name}` {values}, which must be whole numbers above 0"
    channels, strides = network.channels, network.strides
    if len(channels) != len(strides):
        return f"has {len(channels)} channels, but {len(strides)} strides"
    if list(strides) != sorted(strides):
        return f"has strides {strides}, which must not fall: the finest map is the first"
    for name in ("mean", "std"):
        if len(getattr(network, name)) != 3:
            return f"has `{name}` {getattr(network, name)}, which must be three numbers"
    return None


def _map_problem(network: Backbone) -> str | None:
    was_training = network.training
    network.eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, _SIZE, _SIZE))
    network.train(was_training)
    if not isinstance(maps, list) or not all(isinstance(each, Tensor) for each in maps):
        return "does not return a list of tensors"
    if len(maps) != len(network.channels):
        return f"returns {len(maps)} maps, but has {len(network.channels)} channels"
    sizes = network.map_sizes((_SIZE, _SIZE))
    for number, (each, channels, cells) in enumerate(
        zip(maps, network.channels, sizes, strict=True), 1
    ):
        expected = (1, channels, *cells)
        if tuple(each.shape) != expected:
            return (
                f"returns map {number} of an image of {_SIZE}x{_SIZE} as {tuple(each.shape)}, "
                f"but its channels and strides say {expected}"
            )
    return None


def _fault(plugin: Plugin, problem: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"package {plugin.package}: the backbone '{plugin.name}' {problem}; "
        "update the package, or report this to its authors"
    )
