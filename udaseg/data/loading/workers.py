"""Loader processes that build batches, each with its own pipe and shared memory, without locks.

As nothing is shared between processes, none can block on a lock of one that died or hangs.
"""

import contextlib
import logging
import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import cv2
import torch
from torch import Tensor

from udaseg.data.files.images import keep_freed_memory
from udaseg.data.files.processes import without_main_module
from udaseg.data.loading.batches import Batch, TrainingBatches
from udaseg.errors import DataError, EnvironmentFault

log = logging.getLogger(__name__)
_START_METHOD: Final = "spawn"
_JOIN_TIMEOUT_S = 2.0

_MAX_MESSAGE_CHARS = 4000
"""Maximum characters of a message from a process; a pipe transfers this much at once."""

_SIGNAL_HINTS = {
    "SIGKILL": "; memory probably ran out: reduce machine.workers",
    "SIGBUS": "; shared memory (/dev/shm) probably ran out: reduce machine.workers",
}


class WorkerLost(Exception):
    """A loader process died or hangs; the message says which process and how."""


@dataclass(frozen=True)
class BatchFailure:
    """The error that kept a process from building a batch."""

    kind: str
    message: str
    trace: str


class WorkerPool:
    """Loader processes that build the batches of `steps` in turn, each up to `ahead` in advance.

    Args:
        dataset: Builds the batches.
        steps: Steps in the order in which they are requested.
        workers: Number of processes.
        ahead: Batches that each process can hold in shared memory.
        pin: Return batches in page-locked memory.
    """

    def __init__(
        self, dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
    ) -> None:
        self._timeout, self._pin = dataset.options.worker_timeout, pin
        self._steps, self._workers, self._ahead = steps, workers, ahead
        self._shapes = dataset.shapes()
        self._results: dict[int, dict[str, Any] | BatchFailure] = {}
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._shared_memory = _allocate_shared(
            (workers, ahead, sum(map(math.prod, self._shapes.values())))
        )
        context = multiprocessing.get_context(_START_METHOD)
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(
                    target=_run_worker,
                    args=(dataset, self._shared_memory[number], theirs),
                    daemon=True,
                )
                with without_main_module():
                    process.start()
                self._processes.append(process)
                theirs.close()  # otherwise the pipe would not break when the process dies
            for step in steps[: ahead * workers]:
                self._request(step)
        except BaseException:
            self.stop()
            raise

    def batch(self, step: int) -> Batch | BatchFailure:
        """Return a copy of the batch of `step`, or its failure.

        Raises:
            Lost: A process died, or the process of this step exceeded the time limit.
        """
        worker, slot = self._worker_and_slot(step)
        deadline = time.monotonic() + (self._timeout or math.inf)
        while step not in self._results:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                pid = self._processes[worker].pid
                raise WorkerLost(f"loader process {pid} returned no batch for {self._timeout:g} s")
            self._receive(None if remaining == math.inf else remaining)
        result = self._results.pop(step)
        if isinstance(result, BatchFailure):
            return result
        tensors = {
            name: view.pin_memory() if self._pin else view.clone()
            for name, view in _views(self._shared_memory[worker, slot], self._shapes).items()
        }
        self._request(step + self._ahead * self._workers)
        return Batch(step=step, **{"target_images": None, **result, **tensors})

    def stop(self) -> None:
        """Kill all processes; they hold no state that could be lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_JOIN_TIMEOUT_S)
        for pipe in self._pipes:
            pipe.close()

    def _worker_and_slot(self, step: int) -> tuple[int, int]:
        """Return the process that builds a step, and the slot in its shared memory."""
        turn, worker = divmod(step - self._steps.start, self._workers)
        return worker, turn % self._ahead

    def _request(self, step: int) -> None:
        if step in self._steps:
            worker, slot = self._worker_and_slot(step)
            with contextlib.suppress(OSError):  # the wait for its batch reports a dead process
                self._pipes[worker].send((step, slot))

    def _receive(self, seconds: float | None) -> None:
        """Wait for an event, then receive all finished batches."""
        ready = wait([*self._pipes, *(child.sentinel for child in self._processes)], seconds)
        dead = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                while pipe.poll():
                    step, result = pipe.recv()
                    self._results[step] = result
            except (EOFError, OSError):  # the pipe is broken, and all sent results were read
                dead.append(process)
            else:
                dead += [process] if process.sentinel in ready else []
        if dead:
            for process in dead:
                process.join(_JOIN_TIMEOUT_S)  # a pipe breaks shortly before its process is dead
            raise WorkerLost("; ".join(map(_describe_exit, dead)))


def _run_worker(dataset: TrainingBatches, slots: Tensor, pipe: Connection) -> None:
    """Run a loader process: build batches until the parent closes the pipe."""
    # one thread per worker; the parent handles Ctrl-C
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shapes = dataset.shapes()
    with contextlib.suppress(EOFError, OSError):  # the parent has exited
        while True:
            step, slot = pipe.recv()
            result = build_batch(dataset, step)
            if isinstance(result, BatchFailure):
                pipe.send((step, result))
                continue
            for name, view in _views(slots[slot], shapes).items():
                view.copy_(getattr(result, name))
            skipped = tuple(
                reason[: _MAX_MESSAGE_CHARS // len(result.skipped)] for reason in result.skipped
            )
            metadata = {"progress": result.progress, "seed": result.seed, "skipped": skipped}
            pipe.send((step, metadata))


def build_batch(dataset: TrainingBatches, step: int) -> Batch | BatchFailure:
    """Return the batch of `step`, or the error that occurred."""
    try:
        return dataset[step]
    except Exception as error:  # noqa: BLE001  # raised again where the batch is waited for
        kind = next(
            (known for known in (DataError, MemoryError) if isinstance(error, known)), type(error)
        )
        trace = "".join(traceback.format_exception(error))
        return BatchFailure(
            kind.__name__, str(error)[:_MAX_MESSAGE_CHARS], trace[-_MAX_MESSAGE_CHARS:]
        )


def _allocate_shared(shape: tuple[int, int, int]) -> Tensor:
    """Allocate shared memory of shape (processes, batches per process, bytes per batch).

    Raises:
        EnvironmentFault: There is not enough shared memory.
    """
    try:
        memory = torch.empty(shape, dtype=torch.uint8)
        memory.share_memory_()  # type: ignore[no-untyped-call]  # torch's own
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"not enough shared memory (/dev/shm) for {math.prod(shape) / 1e6:.0f} MB of batches; "
            "reduce machine.workers"
        ) from error
    return memory


def _views(slot: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a batch as views of its bytes."""
    views, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        views[name] = slot[begin:end].view(shape)
        begin = end
    return views


def _describe_exit(child: BaseProcess) -> str:
    """Return how a process ended."""
    code = child.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"loader process {child.pid} was killed by {name}{_SIGNAL_HINTS.get(name, '')}"
    reason = "closed its pipe" if code is None else f"ended with exit code {code}"
    return f"loader process {child.pid} {reason}"


_PREFETCH_BATCHES = 4
"""Batches that each process makes in advance."""


class _RemoteTraceback(Exception):
    """The traceback of an error in the process that loads."""


def iterate_batches(
    dataset: TrainingBatches, first: int, *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to the end, decoded in `workers` processes.

    If a process dies, or returns no batch for `dataset.options.worker_timeout` seconds, loading
    continues where it stopped, because a batch is a function of its step. One process then makes
    the batches that were in progress, one at a time, so that a second fault can be traced to a step
    and files.

    Raises:
        DataError: A file cannot be used, or a batch cannot be made; the message names the files.
        EnvironmentFault: The processes have no shared memory.
    """
    _log_caches(dataset)
    step, single_until, reported = first, first, set[str]()
    while step < len(dataset):
        one_at_a_time = step < single_until
        steps = range(step, min(single_until, len(dataset)) if one_at_a_time else len(dataset))
        processes, ahead = (1, 1) if one_at_a_time else (workers, _PREFETCH_BATCHES)
        try:
            for batch in _load_steps(dataset, steps, processes, ahead, pin):
                for reason in batch.skipped:
                    if reason not in reported:
                        reported.add(reason)
                        log.warning("%s; replaced by another image", reason)
                yield batch
                step = batch.step + 1
        except WorkerLost as error:
            if one_at_a_time:
                raise DataError(
                    f"{error}, for the second time; {_describe_batch(dataset, step)}"
                ) from error
            single_until = step + _PREFETCH_BATCHES * workers
            log.warning(
                "%s; a new process makes the batches of steps %d to %d, one at a time",
                error,
                step + 1,
                min(single_until, len(dataset)),
            )


def _load_steps(
    dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
) -> Iterator[Batch]:
    if workers == 0:
        for step in steps:
            batch = _batch_or_raise(build_batch(dataset, step), dataset, step)
            yield batch.pin_memory() if pin else batch
        return
    pool = WorkerPool(dataset, steps, workers, ahead, pin)
    try:
        for step in steps:
            yield _batch_or_raise(pool.batch(step), dataset, step)
    finally:
        pool.stop()


def _batch_or_raise(result: Batch | BatchFailure, dataset: TrainingBatches, step: int) -> Batch:
    """Return the batch, or raise the error of the process that could not make it."""
    if isinstance(result, Batch):
        return result
    trace = _RemoteTraceback(result.trace)
    if result.kind == MemoryError.__name__:
        raise MemoryError(result.message) from trace
    if result.kind == DataError.__name__:
        raise DataError(result.message) from trace
    message = f"loading failed with {result.kind}: {result.message}"
    raise DataError(f"{message}; {_describe_batch(dataset, step)}") from trace


def _describe_batch(dataset: TrainingBatches, step: int) -> str:
    return "the batch of step {}:\n  {}".format(step + 1, "\n  ".join(dataset.image_paths(step)))


def _log_caches(dataset: TrainingBatches) -> None:
    for domain, crops in (("source", dataset.source), ("target", dataset.target)):
        if crops is not None and crops.cache is not None:
            height, width = crops.cache.size
            log.info(
                "%s images of %dx%d are read from %s", domain, width, height, crops.cache.folder
            )
