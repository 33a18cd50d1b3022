"""Loader processes that build batches, each with its own pipe and shared memory, without locks.

As nothing is shared between processes, none can block on a lock of one that died or hangs.
"""

import contextlib
import math
import multiprocessing
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import cv2
import torch
from torch import Tensor

from udaseg.data.batch import Batch, TrainingBatches
from udaseg.data.memory import keep_freed_memory
from udaseg.errors import DataError, EnvironmentFault

_START: Final = "spawn"
_SECONDS_TO_END = 2.0
_LONGEST = 4000
"""Maximum characters of a message from a process; a pipe transfers this much at once."""

_HINTS = {
    "SIGKILL": "; memory probably ran out: reduce machine.workers",
    "SIGBUS": "; shared memory (/dev/shm) probably ran out: reduce machine.workers",
}


class Lost(Exception):
    """A loader process died or hangs; the message says which process and how."""


@dataclass(frozen=True)
class Failed:
    """The error that kept a process from building a batch."""

    kind: str
    message: str
    trace: str


class Crew:
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
        self._limit, self._pin = dataset.worker_timeout, pin
        self._steps, self._workers, self._ahead = steps, workers, ahead
        self._shapes = dataset.shapes()
        self._made: dict[int, dict[str, Any] | Failed] = {}
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._room = _shared((workers, ahead, sum(map(math.prod, self._shapes.values()))))
        context = multiprocessing.get_context(_START)
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(
                    target=_work, args=(dataset, self._room[number], theirs), daemon=True
                )
                process.start()
                self._processes.append(process)
                theirs.close()  # otherwise the pipe would not break when the process dies
            for step in steps[: ahead * workers]:
                self._ask(step)
        except BaseException:
            self.end()
            raise

    def batch(self, step: int) -> Batch | Failed:
        """Return a copy of the batch of `step`, or its failure.

        Raises:
            Lost: A process died, or the process of this step exceeded the time limit.
        """
        worker, slot = self._place(step)
        deadline = time.monotonic() + (self._limit or math.inf)
        while step not in self._made:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                pid = self._processes[worker].pid
                raise Lost(f"loader process {pid} returned no batch for {self._limit:g} s")
            self._take_in(None if remaining == math.inf else remaining)
        result = self._made.pop(step)
        if isinstance(result, Failed):
            return result
        tensors = {
            name: view.pin_memory() if self._pin else view.clone()
            for name, view in _views(self._room[worker, slot], self._shapes).items()
        }
        self._ask(step + self._ahead * self._workers)
        return Batch(step=step, **{"target_images": None, **result, **tensors})

    def end(self) -> None:
        """Kill all processes; they hold no state that could be lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_SECONDS_TO_END)
        for pipe in self._pipes:
            pipe.close()

    def _place(self, step: int) -> tuple[int, int]:
        """Return the process that builds a step, and the slot in its shared memory."""
        turn, worker = divmod(step - self._steps.start, self._workers)
        return worker, turn % self._ahead

    def _ask(self, step: int) -> None:
        if step in self._steps:
            worker, slot = self._place(step)
            with contextlib.suppress(OSError):  # the wait for its batch reports a dead process
                self._pipes[worker].send((step, slot))

    def _take_in(self, seconds: float | None) -> None:
        """Wait for an event, then receive all finished batches."""
        ready = wait([*self._pipes, *(child.sentinel for child in self._processes)], seconds)
        dead = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                while pipe.poll():
                    step, result = pipe.recv()
                    self._made[step] = result
            except (EOFError, OSError):  # the pipe is broken, and all sent results were read
                dead.append(process)
            else:
                dead += [process] if process.sentinel in ready else []
        if dead:
            for process in dead:
                process.join(_SECONDS_TO_END)  # a pipe breaks shortly before its process is dead
            raise Lost("; ".join(map(_how, dead)))


def _work(dataset: TrainingBatches, slots: Tensor, pipe: Connection) -> None:
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
            result = outcome(dataset, step)
            if isinstance(result, Failed):
                pipe.send((step, result))
                continue
            for name, view in _views(slots[slot], shapes).items():
                view.copy_(getattr(result, name))
            skipped = tuple(reason[: _LONGEST // len(result.skipped)] for reason in result.skipped)
            metadata = {"progress": result.progress, "seed": result.seed, "skipped": skipped}
            pipe.send((step, metadata))


def outcome(dataset: TrainingBatches, step: int) -> Batch | Failed:
    """Return the batch of `step`, or the error that occurred."""
    try:
        return dataset[step]
    except Exception as error:  # noqa: BLE001  # raised again where the batch is waited for
        kind = next(
            (known for known in (DataError, MemoryError) if isinstance(error, known)), type(error)
        )
        trace = "".join(traceback.format_exception(error))
        return Failed(kind.__name__, str(error)[:_LONGEST], trace[-_LONGEST:])


def _shared(shape: tuple[int, int, int]) -> Tensor:
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


def _how(child: BaseProcess) -> str:
    """Return how a process ended."""
    code = child.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"loader process {child.pid} was killed by {name}{_HINTS.get(name, '')}"
    reason = "closed its pipe" if code is None else f"ended with exit code {code}"
    return f"loader process {child.pid} {reason}"
