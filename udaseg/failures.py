"""One rank reports why a run failed; on the others the error becomes `RankFailed`."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from udaseg.distributed import (
    COLLECTIVE_TIMEOUT,
    barrier,
    is_initialized,
    local_rank,
    local_world_size,
    rank,
)
from udaseg.errors import EnvironmentFault, Interrupted, RankFailed, UdasegError

_WAIT_FOR_REASON = timedelta(seconds=5)
_LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class FailureReporter:
    """Makes exactly one rank report why the run fails, through a store that all ranks read."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._reported: BaseException | None = None

    def exception_to_raise(self, error: Exception) -> Exception:
        """Return the exception that this rank must raise for `error`."""
        if error is self._reported or isinstance(error, RankFailed):
            return error
        # a consequence of the error that this rank reports
        is_consequence = self._reported is not None and _caused_by(error, self._reported)
        if isinstance(error, Interrupted):  # a signal reaches all ranks
            if rank() > 0:
                return RankFailed(str(error), error.exit_code, reported_elsewhere=True)
            self._reported = error
            return error
        if _is_lost_peer(error) and not is_consequence:
            return self._lost_rank_error()
        code, text = _code_and_message(error)
        if not is_consequence and not self._is_first():
            return RankFailed(text, code, reported_elsewhere=True)
        with contextlib.suppress(RuntimeError):
            self._store.set("why", json.dumps([code, text]))
        self._reported = error
        if rank() == 0:
            return error
        return RankFailed(
            f"process {rank()} on {platform.node()}: {text}", code, reported_elsewhere=False
        )

    def _lost_rank_error(self) -> Exception:
        """Return the reported error of the lost rank, or that it ended without a report."""
        with contextlib.suppress(RuntimeError):
            self._store.wait(["why"], _WAIT_FOR_REASON)
            code, text = json.loads(self._store.get("why"))  # noqa: TID251  # our own text
            return RankFailed(text, code, reported_elsewhere=True)
        text = (
            "another process of the run has ended (killed, out of memory, or its host or network "
            "failed); its checkpoints are intact, continue with --resume RUN"
        )
        code = EnvironmentFault.exit_code
        return RankFailed(text, code, reported_elsewhere=not self._is_first())

    def _is_first(self) -> bool:
        try:
            return bool(self._store.add("failed", 1) == 1)
        except RuntimeError:  # the process that holds the store has ended too
            return rank() == 0


_reporter: FailureReporter | None = None


@contextlib.contextmanager
def process_group(device: str, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[None]:
    """Join the processes that torchrun started; do nothing without torchrun.

    An error on one rank ends all ranks. One rank reports it; on the others it becomes
    `RankFailed`.

    Args:
        device: Name of the device, which may be invalid; see `resolve_device`. With GPUs, each
            process gets the one of its local rank.
        timeout: Longest wait of a rank for the others, once all have joined.
    """
    global _reporter
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_initialized():
        yield
        return
    store, number, size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    cuda = (device == "auto" or device.startswith("cuda")) and torch.cuda.is_available()
    if cuda:
        # before the group: NCCL must not open the first GPU in every process
        torch.cuda.set_device(min(local_rank(), torch.cuda.device_count() - 1))
    # gloo carries flags, counts and objects of the host, so that they do not wait for a GPU
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    # torch does not export PrefixStore
    _reporter = FailureReporter(dist.PrefixStore("udaseg", store))  # type: ignore[attr-defined]
    with report_once():
        if cuda:
            _check_gpu_count()
        yield
        barrier()
    # not after an error: destroying could wait for others; the sockets close with the process
    dist.destroy_process_group()
    _reporter = None


@contextlib.contextmanager
def report_once() -> Iterator[None]:
    """Turn an error of one rank into an error of all ranks, reported once; see `process_group`."""
    try:
        yield
    except Exception as error:
        if _reporter is None:
            raise
        raised = _reporter.exception_to_raise(error)
        if raised is error:
            raise
        raise raised from error


def _check_gpu_count() -> None:
    if local_world_size() > torch.cuda.device_count():
        raise EnvironmentFault(
            f"torchrun started {local_world_size()} processes on {platform.node()}, but it has "
            f"{torch.cuda.device_count()} GPUs; use --nproc-per-node={torch.cuda.device_count()}"
        )


def _code_and_message(error: Exception) -> tuple[int, str]:
    if isinstance(error, UdasegError):
        return error.exit_code, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return EnvironmentFault.exit_code, str(error).partition("\n")[0]
    return 1, f"{type(error).__name__}: {error}"


def _caused_by(error: BaseException, first: BaseException) -> bool:
    """Return whether `error` was raised while `first` was being handled."""
    cause: BaseException | None = error
    while cause is not None and cause is not first:
        cause = cause.__cause__ or cause.__context__
    return cause is first


def _is_lost_peer(error: Exception) -> bool:
    """Return whether `error` means that another rank does not respond."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER)
