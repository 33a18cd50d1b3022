"""Activation checkpointing: recompute activations in the backward pass instead of storing them.

A network is split into segments, block by block; only the inputs of a segment are stored. The
second forward pass must have no side effects: batch norms normalise by the batch as in the first
pass, but their running statistics and counters do not change.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from udaseg.models.norm_counters import COUNTER


def checkpointed(module: nn.Module, inputs: Tensor | Sequence[Tensor]) -> Any:
    """Return `module(inputs)`; store only the inputs, recompute the rest in the backward pass."""
    one = isinstance(inputs, Tensor)

    def call(*tensors: Tensor) -> Any:
        return module(tensors[0] if one else list(tensors))

    # one by one: torch saves only tensors like those of an ordinary operation, not lists
    return _recomputed(module, call, *([inputs] if one else inputs))


def _recomputed(module: nn.Module, call: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    return checkpoint(
        call,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(module)),
        **options,
    )


@contextlib.contextmanager
def checkpointed_parts(network: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Make parts of a network, such as its blocks, store only their inputs in this context."""
    parts = [network.get_submodule(name) for name in names]
    for part in parts:
        part.forward = functools.partial(_recomputed, part, part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # uncovers that of the class


def checkpointed_in_sequence(stages: nn.Module, features: Tensor) -> Tensor:
    """Return `stages(features)`, segment by segment if `stages` is a plain `nn.Sequential`."""
    if type(stages) is not nn.Sequential:
        result: Tensor = checkpointed(stages, features)
        return result
    for segment in split_into_segments(stages):
        features = checkpointed(segment, features)
    return features


def split_into_segments(stages: nn.Sequential) -> list[nn.Module]:
    """Return the blocks of a sequence in order; group single layers between blocks."""
    segments: list[nn.Module] = []
    for is_block, parts in itertools.groupby(_flatten(stages), key=_has_children):
        group = list(parts)
        segments += group if is_block else [nn.Sequential(*group)]
    return segments


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _flatten(stages: nn.Sequential) -> Iterator[nn.Module]:
    for part in stages:
        # a block may be a subclass of Sequential; only plain Sequentials are split
        if type(part) is nn.Sequential:
            yield from _flatten(part)
        else:
            yield part


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms in training mode unchanged in this context."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    saved = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, saved, strict=True):
        # clones, because autograd saves running statistics too and checks the saved tensors
        for name, value in buffers.items():
            norm._buffers[name] = None if value is None else value.clone()
        if norm.momentum is not None:
            norm._buffers[COUNTER] = None  # nothing reads a clone of it
    try:
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            norm._buffers.update(buffers)
