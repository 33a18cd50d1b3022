"""Rank, world size and collective operations, which also work in a single process.

torchrun starts the processes; `session` joins them. All ranks must call every collective function
of this module, in the same order.
"""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from udaseg.errors import EnvironmentFault, Interrupted, RankFailed, UdasegError

T = TypeVar("T")

PATIENCE = timedelta(minutes=15)
"""Longest wait of a rank for the others in one operation; long enough for a slow first batch."""
_TO_SAY_WHY = timedelta(seconds=5)
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class _Voice:
    """Makes exactly one rank report why the run fails, through a store that all ranks read."""

    def __init__(self, notes: Any) -> None:
        self._notes = notes
        self._told: BaseException | None = None

    def of(self, error: Exception) -> Exception:
        """Return the exception that this rank must raise for `error`."""
        if error is self._told or isinstance(error, RankFailed):
            return error
        # a consequence of the error that this rank reports
        is_consequence = self._told is not None and _came_of(error, self._told)
        if isinstance(error, Interrupted):  # a signal reaches all ranks
            if rank() > 0:
                return RankFailed(str(error), error.exit_code, told=True)
            self._told = error
            return error
        if _is_loss(error) and not is_consequence:
            return self._of_loss(error)
        code, text = _told(error)
        if not is_consequence and not self._first():
            return RankFailed(text, code, told=True)
        with contextlib.suppress(RuntimeError):
            self._notes.set("why", json.dumps([code, text]))
        self._told = error
        if rank() == 0:
            return error
        return RankFailed(f"process {rank()} on {platform.node()}: {text}", code, told=False)

    def _of_loss(self, error: Exception) -> Exception:
        """Return the reported error of the lost rank, or that it ended without a report."""
        with contextlib.suppress(RuntimeError):
            self._notes.wait(["why"], _TO_SAY_WHY)
            code, text = json.loads(self._notes.get("why"))
            return RankFailed(text, code, told=True)
        text = (
            "another process of the run has ended (killed, out of memory, or its host or network "
            "failed); its checkpoints are intact, continue with --resume RUN"
        )
        reported_elsewhere = not self._first()
        failure = RankFailed(text, EnvironmentFault.exit_code, told=reported_elsewhere)
        failure.__cause__ = error
        return failure

    def _first(self) -> bool:
        try:
            return bool(self._notes.add("failed", 1) == 1)
        except RuntimeError:  # the process that holds the store has ended too
            return rank() == 0


_voice: _Voice | None = None
_alone = False


@contextlib.contextmanager
def session(device_type: str) -> Iterator[None]:
    """Join the processes that torchrun started; do nothing without torchrun.

    An error on one rank ends all ranks. One rank reports it; on the others it becomes
    `RankFailed`.

    Args:
        device_type: `cuda` assigns each process the GPU of its local rank.

    Raises:
        EnvironmentFault: torchrun started more processes on this host than it has GPUs.
    """
    global _voice
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _active():
        yield
        return
    store, number, size = next(rendezvous("env://", timeout=PATIENCE))
    cuda = device_type == "cuda"
    # gloo carries flags, counts and objects of the host, so that they do not wait for a GPU
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    notes = dist.PrefixStore("udaseg", store)  # type: ignore[attr-defined]  # torch does not export it
    _voice = _Voice(notes)
    with one_voice():
        if cuda:
            _take_gpu()
        yield
        wait_for_all()
    # not after an error: destroying could wait for others; the sockets close with the process
    dist.destroy_process_group()
    _voice = None


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Turn an error of one rank into an error of all ranks, reported once; see `session`."""
    try:
        yield
    except Exception as error:
        voice = _voice
        if voice is None:
            raise
        raised = voice.of(error)
        if raised is error:
            raise
        raise raised from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make this rank act as a single process; the body must not need the other ranks."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def local_rank() -> int:
    """Return the rank of this process on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_part(count: int) -> tuple[int, slice]:
    """Return the number of items of all ranks, `count` each, and the slice of this rank."""
    first = rank() * count
    return world_size() * count, slice(first, first + count)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, without a gradient.

    A single process returns `value` itself.
    """
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks, without a gradient.

    A single process returns `value` itself.
    """
    return value if world_size() == 1 else sum_over_ranks(value) / world_size()


def mean_share(count: Tensor) -> Tensor:
    """Return the divisor that turns a local sum into this rank's term of a mean over all ranks.

    DistributedDataParallel averages gradients over ranks. A sum divided by this and then averaged
    is the mean over all counted items, even if the ranks have different numbers of them.

    Args:
        count: Scalar; number of items on this rank.

    Returns:
        A float scalar of at least 1 / world size.
    """
    return (sum_over_ranks(count.float()) / world_size()).clamp_min(1 / world_size())


def largest_over_ranks(number: int) -> int:
    """Return the largest `number` of all ranks."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def wait_for_all() -> None:
    """Wait until all ranks have called this."""
    # not dist.barrier, which waits for the queue of the GPU
    largest_over_ranks(0)


def everywhere(holds: bool) -> bool:
    """Return whether `holds` is true on every rank."""
    return largest_over_ranks(int(not holds)) == 0


def gathered(value: T) -> list[T]:
    """Return the values of all ranks, in rank order; they must be picklable."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def by_first_rank(act: Callable[[], T]) -> T:
    """Call `act` on rank 0 while the others wait, and return its result on every rank.

    The result must be picklable.

    Raises:
        RankFailed: On the other ranks, when `act` failed on rank 0.
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
        raise RankFailed(text, code, told=True)
    result: T = outcome[0]
    return result


@contextlib.contextmanager
def first_of_host_first() -> Iterator[None]:
    """Run the body on local rank 0 of each host first, then on the others, which find its files."""
    # a single process does not wait
    if local_rank() > 0:
        wait_for_all()
    yield
    if local_rank() == 0:
        wait_for_all()


def _take_gpu() -> None:
    if local_world_size() > torch.cuda.device_count():
        raise EnvironmentFault(
            f"torchrun started {local_world_size()} processes on {platform.node()}, but it has "
            f"{torch.cuda.device_count()} GPUs; use --nproc-per-node={torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank())


def _told(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    if isinstance(error, UdasegError):
        return error.exit_code, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return EnvironmentFault.exit_code, str(error).partition("\n")[0]
    return 1, f"{type(error).__name__}: {error}"


def _came_of(error: BaseException, first: BaseException) -> bool:
    """Return whether `error` was raised while `first` was being handled."""
    cause: BaseException | None = error
    while cause is not None and cause is not first:
        cause = cause.__cause__ or cause.__context__
    return cause is first


def _is_loss(error: Exception) -> bool:
    """Return whether `error` means that another rank does not respond."""
    if isinstance(error, UdasegError):
        return False
    network = isinstance(error, dist.DistError)
    return network or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
    )


def _active() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()
