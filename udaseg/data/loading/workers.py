"""Loader processes that make batches, each with its own pipe and shared memory, without locks.

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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import cv2
import torch
from torch import Tensor

from udaseg.data.files.images import keep_freed_memory
from udaseg.data.files.parallel import without_main_module
from udaseg.data.loading.batches import Batch, TrainingBatches
from udaseg.errors import DataChanged, DataError, EnvironmentFault
from udaseg.text import format_size

log = logging.getLogger(__name__)
_START_METHOD: Final = "spawn"
_JOIN_TIMEOUT_S = 2.0
_MAX_WAIT_S = 60.0  # a system call cannot wait for ever

_PREFETCH_BATCHES = 4
"""Batches that each process makes in advance."""

_MAX_MESSAGE_CHARS = 4000
"""Maximum characters of a message from a process; a pipe transfers this much at once."""

_SIGNAL_HINTS = {
    "SIGKILL": "; memory probably ran out: reduce machine.workers",
    "SIGBUS": "; shared memory (/dev/shm) probably ran out: reduce machine.workers",
}


def iterate_batches(
    dataset: TrainingBatches, first: int, *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to the end, made in `workers` processes.

    If a process dies, or returns no batch for `dataset.options.worker_timeout` seconds, loading
    continues where it stopped, because a batch is a function of its step. One process then makes
    the batches that were in progress, one at a time, so that a second fault can be traced to a step
    and files.
    """
    _log_caches(dataset)
    step, single_until, reported = first, first, set[str]()
    while step < len(dataset):
        one_at_a_time = step < single_until
        end = min(single_until, len(dataset)) if one_at_a_time else len(dataset)
        processes, ahead = (1, 1) if one_at_a_time else (workers, _PREFETCH_BATCHES)
        try:
            for batch in _load_steps(dataset, range(step, end), processes, ahead, pin):
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


def _log_caches(dataset: TrainingBatches) -> None:
    for domain, crops in (("source", dataset.source), ("target", dataset.target)):
        for cache in () if crops is None else (part.cache for part in crops.parts or (crops,)):
            if cache is not None:
                size = format_size(cache.size)
                log.info("%s images of %s are read from %s", domain, size, cache.folder)


class WorkerLost(Exception):
    """A loader process died or hangs; the message says which process and how."""


class _Worker:
    """A loader process with its own pipe, and shared memory for the batches it makes in advance."""

    def __init__(self, dataset: TrainingBatches, memory: Tensor) -> None:
        self.slots = _batch_views(memory, dataset.shapes())
        context = multiprocessing.get_context(_START_METHOD)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_run_worker, args=(dataset, memory, theirs), daemon=True
        )
        with without_main_module():
            self.process.start()
        theirs.close()  # otherwise the pipe would not break when the process dies


def _load_steps(
    dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
) -> Iterator[Batch]:
    if workers > 0:
        yield from _load_in_processes(dataset, steps, workers, ahead, pin)
    else:
        for step in steps:
            batch = _make_batch(dataset, step)
            yield batch.pin_memory() if pin else batch


def _load_in_processes(
    dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of `steps`; the processes take turns, each is up to `ahead` in advance.

    A thread copies a batch out of shared memory while the caller uses the batch before it.
    """
    timeout = dataset.options.worker_timeout or math.inf
    copy = Tensor.pin_memory if pin else Tensor.clone
    copier = ThreadPoolExecutor(1)
    pool: list[_Worker] = []
    results: dict[int, Batch | Exception] = {}

    def request(step: int) -> None:
        if step in steps:
            with contextlib.suppress(OSError):  # the wait for its batch reports a dead process
                pool[step % workers].pipe.send((step, step // workers % ahead))

    def take(step: int, result: Batch | Exception) -> Batch:
        if isinstance(result, Exception):
            raise result
        views = pool[step % workers].slots[step // workers % ahead]
        tensors: dict[str, Any] = {name: copy(view) for name, view in views.items()}
        request(step + ahead * workers)
        return replace(result, **tensors)

    try:
        for memory in _allocate_shared(dataset, workers, ahead):
            pool.append(_Worker(dataset, memory))
        for step in steps[: ahead * workers]:
            request(step)
        coming: Future[Batch] | None = None
        for step in steps:
            if coming is None:
                _await(step, pool, results, timeout)
                coming = copier.submit(take, step, results.pop(step))
            batch = coming.result()
            results |= _receive(pool, 0)[0]
            following = results.pop(step + 1, None)
            coming = None if following is None else copier.submit(take, step + 1, following)
            yield batch
    finally:  # kill all: they hold no state that could be lost
        copier.shutdown()
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join(_JOIN_TIMEOUT_S)
            worker.pipe.close()


def _await(
    step: int, pool: list[_Worker], results: dict[int, Batch | Exception], timeout: float
) -> None:
    """Wait until `results` has the result of `step`; raise WorkerLost if that cannot be."""
    worker, deadline = pool[step % len(pool)], time.monotonic() + timeout
    while step not in results:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise WorkerLost(
                f"loader process {worker.process.pid} returned no batch for {timeout:g} s"
            )
        found, dead = _receive(pool, min(remaining, _MAX_WAIT_S))
        results |= found
        if dead:
            for process in dead:
                process.join(_JOIN_TIMEOUT_S)  # a pipe breaks shortly before its process is dead
            raise WorkerLost("; ".join(map(_describe_exit, dead)))


def _receive(
    pool: list[_Worker], seconds: float
) -> tuple[dict[int, Batch | Exception], list[BaseProcess]]:
    """Wait for an event, then return all finished batches, by step, and the dead processes."""
    pipes, sentinels = [w.pipe for w in pool], [w.process.sentinel for w in pool]
    ready = wait([*pipes, *sentinels], seconds)
    results, dead = dict[int, Batch | Exception](), list[BaseProcess]()
    for worker in pool:
        is_dead = worker.process.sentinel in ready
        try:
            while worker.pipe.poll():
                step, result = worker.pipe.recv()
                results[step] = result
        except (EOFError, OSError):  # the pipe is broken, and all sent results were read
            is_dead = True
        if is_dead:
            dead.append(worker.process)
    return results, dead


def _allocate_shared(dataset: TrainingBatches, workers: int, ahead: int) -> Tensor:
    """Return shared memory for `ahead` batches of each process."""
    batch_bytes = sum(map(math.prod, dataset.shapes().values()))
    try:
        memory = torch.empty((workers, ahead, batch_bytes), dtype=torch.uint8)
        memory.share_memory_()  # type: ignore[no-untyped-call]  # torch's own
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"not enough shared memory (/dev/shm) for {workers * ahead * batch_bytes / 1e6:.0f} MB "
            "of batches; reduce machine.workers"
        ) from error
    return memory


def _batch_views(memory: Tensor, shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Tensor]]:
    """Return the tensors of each batch as views of its bytes, one row of `memory`."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return [
        {name: part.view(shapes[name]) for name, part in zip(shapes, row.split(sizes), strict=True)}
        for row in memory
    ]


def _run_worker(dataset: TrainingBatches, memory: Tensor, pipe: Connection) -> None:
    """Run a loader process: make batches until the parent closes the pipe."""
    # one thread per worker; the parent handles Ctrl-C
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slots = _batch_views(memory, dataset.shapes())
    with contextlib.suppress(EOFError, OSError):  # the parent has exited
        while True:
            step, slot = pipe.recv()
            try:
                batch = _make_batch(dataset, step)
            except Exception as error:  # noqa: BLE001  # raised again where the batch is awaited
                pipe.send((step, error))
                continue
            for name, view in slots[slot].items():
                view.copy_(getattr(batch, name))
            skipped = [text[: _MAX_MESSAGE_CHARS // len(batch.skipped)] for text in batch.skipped]
            without_tensors: dict[str, Any] = dict.fromkeys(slots[slot])
            pipe.send((step, replace(batch, skipped=tuple(skipped), **without_tensors)))


def _make_batch(dataset: TrainingBatches, step: int) -> Batch:
    """Return the batch of `step`, or raise an error that a pipe can transfer."""
    try:
        return dataset[step]
    except Exception as error:  # noqa: BLE001  # whatever it is, the step and its files are named
        message = str(error)[:_MAX_MESSAGE_CHARS]
        failure: Exception = DataError(message)
        if isinstance(error, MemoryError):
            failure = MemoryError(message)
        elif isinstance(error, DataChanged):
            failure = DataChanged(message)
        elif not isinstance(error, DataError):
            failure = DataError(
                f"loading failed with {type(error).__name__}: {message}; "
                f"{_describe_batch(dataset, step)}"
            )
        failure.add_note("".join(traceback.format_exception(error))[-_MAX_MESSAGE_CHARS:])
        raise failure from None


def _describe_batch(dataset: TrainingBatches, step: int) -> str:
    return "the batch of step {}:\n  {}".format(step + 1, "\n  ".join(dataset.image_paths(step)))


def _describe_exit(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"loader process {process.pid} was killed by {name}{_SIGNAL_HINTS.get(name, '')}"
    reason = "closed its pipe" if code is None else f"ended with exit code {code}"
    return f"loader process {process.pid} {reason}"
