"""Rank, world size, and the few collective operations we need; honest in a single process.

torchrun starts the processes; `session` joins them. Every function below it that is not about one
rank alone must be called by all ranks in the same order.
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
"""How long a rank waits for the others in one operation: for a slow first batch, not for ever."""
_TO_SAY_WHY = timedelta(seconds=5)
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class _Voice:
    """Lets one rank alone tell why the run fails, by notes that all can read."""

    def __init__(self, notes: Any) -> None:
        self._notes = notes
        self._told: BaseException | None = None

    def of(self, error: Exception) -> Exception:
        """Return what this rank is to raise for `error`."""
        if error is self._told or isinstance(error, RankFailed):
            return error
        # the fault that this rank tells, in other words
        again = self._told is not None and _came_of(error, self._told)
        if isinstance(error, Interrupted):  # on all ranks at once
            if rank() > 0:
                return RankFailed(str(error), error.exit_code, told=True)
            self._told = error
            return error
        if _is_loss(error) and not again:
            return self._of_loss(error)
        code, text = _told(error)
        if not again and not self._first():
            return RankFailed(text, code, told=True)
        with contextlib.suppress(RuntimeError):
            self._notes.set("why", json.dumps([code, text]))
        self._told = error
        if rank() == 0:
            return error
        return RankFailed(f"process {rank()} on {platform.node()}: {text}", code, told=False)

    def _of_loss(self, error: Exception) -> Exception:
        """Return the error of the rank that left, or that one is gone without a word."""
        with contextlib.suppress(RuntimeError):
            self._notes.wait(["why"], _TO_SAY_WHY)
            code, text = json.loads(self._notes.get("why"))
            return RankFailed(text, code, told=True)
        text = (
            "another process of the run is gone (killed, out of memory, or its host or network "
            "failed); what was saved stands, go on with --resume RUN"
        )
        told = not self._first()
        made = RankFailed(text, EnvironmentFault.exit_code, told=told)
        made.__cause__ = error
        return made

    def _first(self) -> bool:
        try:
            return bool(self._notes.add("failed", 1) == 1)
        except RuntimeError:  # whoever held the notes is gone too
            return rank() == 0


_voice: _Voice | None = None
_alone = False


@contextlib.contextmanager
def session(device_type: str) -> Iterator[None]:
    """Join the processes that torchrun started, as its environment says; nothing without one.

    An error on one rank ends all, and one rank alone tells it: on the others it becomes
    `RankFailed`.

    Args:
        device_type: `cuda` gives each process of a host the GPU of its number.

    Raises:
        EnvironmentFault: torchrun started more processes on this host than it has GPUs.
    """
    global _voice
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _active():
        yield
        return
    store, number, size = next(rendezvous("env://", timeout=PATIENCE))
    cuda = device_type == "cuda"
    # what lies on the host (flags, counts, words) goes by gloo, so that no GPU is waited for
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    notes = dist.PrefixStore("udaseg", store)  # type: ignore[attr-defined]  # torch names it so
    _voice = _Voice(notes)
    with one_voice():
        if cuda:
            _take_gpu()
        yield
        wait_for_all()
    # after an error the sockets close with the process: destroying could wait for others
    dist.destroy_process_group()
    _voice = None


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let an error of one rank be the error of all, told once; see `session`."""
    try:
        yield
    except Exception as error:
        voice = _voice
        if voice is None:
            raise
        own = voice.of(error)
        if own is error:
            raise
        raise own from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this rank work as if there were no others; what it runs must not need their part."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def local_rank() -> int:
    """Return this process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_part(count: int) -> tuple[int, slice]:
    """Return the items of all ranks together when each has `count`, and which are this rank's."""
    first = rank() * count
    return world_size() * count, slice(first, first + count)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, without a gradient; `value` itself when alone."""
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks, without a gradient; `value` itself when alone."""
    return value if world_size() == 1 else sum_over_ranks(value) / world_size()


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


def largest_over_ranks(number: int) -> int:
    """Return the largest `number` of all ranks."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def wait_for_all() -> None:
    """Return when every rank has come here."""
    # not dist.barrier, which would wait for a GPU's queue
    largest_over_ranks(0)


def everywhere(holds: bool) -> bool:
    """Return whether something holds on every rank."""
    return largest_over_ranks(int(not holds)) == 0


def gathered(value: T) -> list[T]:
    """Return the plain value of each rank, in rank order."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def by_first_rank(act: Callable[[], T]) -> T:
    """Let rank 0 alone act while the others wait; return its plain result on every rank.

    Raises:
        RankFailed: On the others, when rank 0 failed.
    """
    if world_size() == 1:
        return act()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = act()
        except UdasegError as error:
            dist.broadcast_object_list([None, (str(error), error.exit_code)])
            raise
    dist.broadcast_object_list(box)
    if box[1] is not None:
        text, code = box[1]
        raise RankFailed(text, code, told=True)
    result: T = box[0]
    return result


@contextlib.contextmanager
def first_of_host_first() -> Iterator[None]:
    """Let one process of each host go through before the others: what it makes, they find."""
    # alone, nothing waits
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
    """Return exit code and words of an error."""
    if isinstance(error, UdasegError):
        return error.exit_code, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return EnvironmentFault.exit_code, str(error).partition("\n")[0]
    return 1, f"{type(error).__name__}: {error}"


def _came_of(error: BaseException, first: BaseException) -> bool:
    """Return whether `error` was raised while `first` was dealt with."""
    found: BaseException | None = error
    while found is not None and found is not first:
        found = found.__cause__ or found.__context__
    return found is first


def _is_loss(error: Exception) -> bool:
    """Return whether `error` says that another rank does not answer."""
    if isinstance(error, UdasegError):
        return False
    network = isinstance(error, dist.DistError)
    return network or (isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST))


def _active() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()
