"""The counters of batch norms, `num_batches_tracked`, in one operator for a whole network."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

COUNTER = "num_batches_tracked"


@contextlib.contextmanager
def count_together(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Add 1 to the counters of norms in training mode; hide them from the norms in this context.

    Otherwise each norm adds 1 to its own counter, by one more operator in each pass. A norm without
    momentum reads its counter, so it still does. Each norm should run once in this context.
    """
    hidden = [
        (norm._buffers, counter)
        for norm in norms
        if norm.training and norm.track_running_stats and norm.momentum is not None
        if (counter := norm._buffers[COUNTER]) is not None
    ]
    if hidden:
        torch._foreach_add_([counter for _, counter in hidden], 1)
    for buffers, _ in hidden:
        buffers[COUNTER] = None
    try:
        yield
    finally:
        for buffers, counter in hidden:
            buffers[COUNTER] = counter
