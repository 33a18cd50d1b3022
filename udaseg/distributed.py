"""Rank, world size, and the few collective operations we need; honest in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, without a gradient; `value` itself when alone."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def mean_share(count: Tensor) -> Tensor:
    """Return the divisor that turns a local sum into its part of the mean over all ranks.

    DistributedDataParallel averages gradients over ranks, so a sum divided by this and averaged is
    the mean over all counted items, whatever each rank holds of them.

    Args:
        count: Scalar; items on this rank.

    Returns:
        A float scalar of at least 1 / world size.
    """
    return (sum_over_ranks(count.float()) / world_size()).clamp_min(1 / world_size())


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Return the rows of every rank, in rank order; every rank must hold equally many."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
