"""Weights files for networks of timm: by timm's names, or by those of the networks' releases."""

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from udaseg.models.weights import WeightsFile, load_into, plainly_named

_CHUNK = re.compile(r"^blocks\.\d+\.(\d+\.)")
"""DINOv2's training code cuts its blocks into chunks, and numbers them through."""

_FILTERS = ("checkpoint_filter_fn", "_filter_fn")
"""What modules of timm call the function that renames the tensors of a release."""


def load_timm_file(network: nn.Module, name: str, file: WeightsFile) -> str:
    """Load a weights file into a network of timm and return the report; see `load_into`.

    Names of timm are taken, and those of a release that timm itself converts: DINOv2, DINOv3,
    ConvNeXt, Swin, PVT and others. Position embeddings of another grid are resampled by timm.

    Args:
        network: The network, or what timm's `features_only` makes of it.
        name: Its name in timm.
        file: The tensors.

    Raises:
        CheckpointError: They belong to another network.
    """
    tensors = _without_chunks(plainly_named(file.tensors))
    state = network.state_dict()
    named = _named_as(state, tensors)
    if not all(key in named and named[key].shape == value.shape for key, value in state.items()):
        named = _named_as(state, _converted(tensors, network, name))
    return load_into(network, named, origin=file.path, partial=file.partial)


def _without_chunks(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    blocks = [key for key in tensors if key.startswith("blocks.")]
    if not blocks or not all(_CHUNK.match(key) for key in blocks):
        return tensors
    return {_CHUNK.sub(r"blocks.\1", key): value for key, value in tensors.items()}


def _named_as(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of the network: `features_only` writes `stages_0` for `stages.0`.

    Names that the network lacks stay as they are.
    """
    names = {key.replace(".", "_"): key for key in state}
    return {names.get(key.replace(".", "_"), key): value for key, value in tensors.items()}


def _converted(
    tensors: Mapping[str, Tensor], network: nn.Module, name: str
) -> Mapping[str, Tensor]:
    """Return tensors by timm's names; unchanged if timm cannot make sense of them."""
    module = sys.modules[timm.models.model_entrypoint(name.partition(".")[0]).__module__]
    convert: Any = next((getattr(module, key) for key in _FILTERS if hasattr(module, key)), None)
    if convert is None:
        return tensors
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        # a filter looks into the network, by names that `features_only` has changed; some print
        whole = network if hasattr(network, "blocks") else timm.create_model(name, num_classes=0)
        try:
            converted: dict[str, Tensor] = convert(dict(tensors), whole)
        except (LookupError, RuntimeError, AssertionError, AttributeError, ValueError, TypeError):
            return tensors  # a file of another network, as `load_into` will say
    return converted
