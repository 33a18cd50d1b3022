"""Rank, world size and collective operations, which also work in a single process.

torchrun starts the processes; `failures.process_group` joins them. All ranks must call every
collective function of this module, in the same order.
"""

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from udaseg.errors import EnvironmentFault, RankFailed, RecipeError, UdasegError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=15)
"""Longest wait of a rank for the others in one operation; long enough for a slow first batch."""

SHARES_TIMEOUT = timedelta(days=7)
"""The same where each rank works through its share alone; a rank that ends is noticed at once."""

_without_peers = False


@contextlib.contextmanager
def without_peers() -> Iterator[None]:
    """Make this rank act as a single process; the body must not need the other ranks."""
    global _without_peers
    before, _without_peers = _without_peers, True
    try:
        yield
    finally:
        _without_peers = before


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def local_rank() -> int:
    """Return the rank of this process on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def slice_for_rank(count: int) -> tuple[int, slice]:
    """Return the number of items of all ranks, `count` each, and the slice of this rank."""
    first = rank() * count
    return world_size() * count, slice(first, first + count)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, without a gradient.

    A single process returns `value` itself.
    """
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks, without a gradient.

    A single process returns `value` itself.
    """
    return value if world_size() == 1 else all_reduce_sum(value) / world_size()


def mean_divisor(count: Tensor) -> Tensor:
    """Return the divisor that turns a local sum into this rank's term of a mean over all ranks.

    DistributedDataParallel averages gradients over ranks. A sum divided by this and then averaged
    is the mean over all counted items, even if the ranks have different numbers of them.

    Args:
        count: Scalar; number of items on this rank.

    Returns:
        A float scalar of at least 1 / world size.
    """
    return divisor_of_total(all_reduce_sum(count.float()))


def divisor_of_total(total: Tensor) -> Tensor:
    """Return `mean_divisor` of a count that is summed over ranks already."""
    return (total.float() / world_size()).clamp_min(1 / world_size())


class RankSums:
    """Numbers of a step that are summed over ranks in one reduction.

    Args:
        numbers: Those that are known before the step; they are summed with those of `reduce`.

    Attributes:
        totals: The sums by name, once `reduce` was called.
    """

    def __init__(self, **numbers: Tensor) -> None:
        self.totals: dict[str, Tensor] = {}
        self._numbers = numbers

    def reduce(self, **numbers: Tensor) -> Mapping[str, Tensor]:
        """Return the sums of all numbers over ranks, in float64; call it once, on all ranks.

        A single process returns the numbers themselves.
        """
        self.totals = {**self._numbers, **numbers}
        if world_size() > 1 and self.totals:
            values = [value.detach() for value in self.totals.values()]
            flat = all_reduce_sum(torch.cat([value.double().flatten() for value in values]))
            sums = torch.split(flat, [value.numel() for value in values])
            shaped = [part.view_as(value) for part, value in zip(sums, values, strict=True)]
            self.totals = dict(zip(self.totals, shaped, strict=True))
        return self.totals


def norm_group() -> "dist.ProcessGroup":
    """Return the process group of batch norms, so that they need not wait for gradients.

    All ranks must make the first call together.
    """
    group: dist.ProcessGroup = _second_group(dist.group.WORLD)
    return group


@functools.lru_cache(maxsize=1)
def _second_group(_: "dist.ProcessGroup | None") -> Any:
    """Return another group of all ranks, made once for each first group."""
    return dist.new_group(timeout=COLLECTIVE_TIMEOUT)


def all_gather_in_norm(value: Tensor) -> Tensor:
    """Return the `value` (C,) of each rank, (R, C), through the group of batch norms."""
    # torch 2.14 has another name for it
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gathered = value.new_empty(world_size() * len(value))
    gather(gathered, value, group=norm_group())
    return gathered.view(-1, len(value))


def all_reduce_in_norm(value: Tensor) -> None:
    """Sum `value` over all ranks, in place, through the group of batch norms."""
    dist.all_reduce(value, group=norm_group())


def all_reduce_max(number: int) -> int:
    """Return the largest `number` of all ranks."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def barrier() -> None:
    """Wait until all ranks have called this."""
    # not dist.barrier, which waits for the queue of the GPU
    all_reduce_max(0)


def all_ranks(holds: bool) -> bool:
    """Return whether `holds` is true on every rank."""
    return all_reduce_max(int(not holds)) == 0


def all_gather_object(value: T) -> list[T]:
    """Return the values of all ranks, in rank order; they must be picklable."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def differences_between_ranks(values: Mapping[str, object]) -> str:
    """Return which process has which value, for the keys whose values differ; "" if all agree.

    Every rank returns the same text.
    """
    found = []
    everyone = all_gather_object((platform.node(), dict(values)))
    for key in sorted({key for _, theirs in everyone for key in theirs}):
        holders: dict[str, list[str]] = {}
        for number, (host, theirs) in enumerate(everyone):
            holders.setdefault(str(theirs.get(key)), []).append(f"{number} on {host}")
        if len(holders) > 1:
            words = [
                f"{value} in process {first}" + (f" and {len(rest)} others" if rest else "")
                for value, (first, *rest) in holders.items()
            ]
            found.append(f"{key} is {', '.join(words)}")
    return "; ".join(found[:10]) + ("; …" if len(found) > 10 else "")


def on_rank_zero(act: Callable[[], T]) -> T:
    """Call `act` on rank 0 while the others wait, and return its result on every rank.

    The result must be picklable. An error on rank 0 becomes `RankFailed` on the others.
    """
    if world_size() == 1:
        return act()
    # [result, (message, exit code) of an error]
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = act()
        except UdasegError as error:
            dist.broadcast_object_list([None, (str(error), error.exit_code)])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        text, code = outcome[1]
        raise RankFailed(text, code, reported_elsewhere=True)
    result: T = outcome[0]
    return result


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the body on local rank 0 of each host first, then on the others, which find its files."""
    if local_rank() > 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def is_initialized() -> bool:
    """Return whether this rank is in a process group, and not inside `without_peers`."""
    return not _without_peers and dist.is_available() and dist.is_initialized()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`, without waiting for a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def resolve_device(name: str) -> torch.device:
    """Return the device with that name; `auto` is CUDA if available.

    With several processes on a host, each gets the GPU with its local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"machine.device: '{name}' is not a device; use cpu, cuda or cuda:N"
        ) from error
    if device.type in ("mps", "xpu") and not getattr(torch, device.type).is_available():
        raise EnvironmentFault(
            f"machine.device: {name} is not available to this PyTorch; use --device cpu"
        )
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", local_rank())
    elif world_size() > 1:
        raise RecipeError(
            f"machine.device: {name} is one GPU for {world_size()} processes; use cuda, and "
            "select GPUs with CUDA_VISIBLE_DEVICES"
        )
    if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"machine.device: {name} is not available ({torch.cuda.device_count()} CUDA devices); "
            "use --device cpu"
        )
    return device


def select_device(name: str) -> torch.device:
    """Return `resolve_device(name)`; a GPU becomes the one of this process's streams and events."""
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
