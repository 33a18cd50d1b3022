"""Activations that are made again in the backward pass instead of being kept (checkpointing).

A network is cut into segments, block by block; only the inputs of a segment are kept. The second
forward pass must not be noticed: batch norms normalise by the batch as in the first, but their
running statistics and counters stay.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Tensor) -> Any:
    """Return `module(*inputs)`; of the graph only the inputs are kept until it is needed."""
    return checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), statistics_stay(module)),
    )


def recomputed_in_turn(stages: nn.Module, features: Tensor) -> Tensor:
    """Return `stages(features)`, segment by segment where `stages` is a plain sequence."""
    if type(stages) is not nn.Sequential:
        result: Tensor = recomputed(stages, features)
        return result
    for segment in segments(stages):
        features = recomputed(segment, features)
    return features


def segments(stages: nn.Sequential) -> list[nn.Module]:
    """Return the blocks of a sequence in order; single layers between blocks go together."""
    found: list[nn.Module] = []
    layers: list[nn.Module] = []

    def close() -> None:
        if layers:
            found.append(nn.Sequential(*layers))
            layers.clear()

    for part in _flat(stages):
        if next(part.children(), None) is None:
            layers.append(part)
        else:
            close()
            found.append(part)
    close()
    return found


def _flat(stages: nn.Sequential) -> Iterator[nn.Module]:
    for part in stages:
        # a block may be a kind of Sequential; only plain ones are taken apart
        if type(part) is nn.Sequential:
            yield from _flat(part)
        else:
            yield part


@contextlib.contextmanager
def statistics_stay(module: nn.Module) -> Iterator[None]:
    """Let batch norms in training normalise as ever, but leave their running statistics alone."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    own = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        # copies, as autograd keeps running statistics too and counts what is kept
        for name, value in buffers.items():
            norm._buffers[name] = None if value is None else value.clone()
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
