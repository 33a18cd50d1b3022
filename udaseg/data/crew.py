"""Processes that make batches: each with a pipe and shared memory of its own, and no lock.

So nothing ever waits for what a process held that has died or hangs.
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
"""Characters of a message from a process: a pipe takes so much in one piece."""

_HINTS = {
    "SIGKILL": "; memory probably ran out: take fewer machine.workers",
    "SIGBUS": "; shared memory (/dev/shm) probably ran out: take fewer machine.workers",
}


class Lost(Exception):
    """A loader process is gone or stuck; says which and how."""


@dataclass(frozen=True)
class Failed:
    """Why a process could not make a batch."""

    kind: str
    message: str
    trace: str


class Crew:
    """Processes that make the batches of `steps` in turn, each `ahead` of them before they are due.

    Args:
        dataset: Makes batches.
        steps: Asked for one after another.
        workers: Processes.
        ahead: Batches that each has room for.
        pin: Hand batches out in page-locked memory.
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
                theirs.close()  # or the pipe would not break when the process is gone
            for step in steps[: ahead * workers]:
                self._ask(step)
        except BaseException:
            self.end()
            raise

    def batch(self, step: int) -> Batch | Failed:
        """Return the batch of `step`, in memory of its own.

        Raises:
            Lost: A process is dead, or that of this step gave nothing for too long.
        """
        worker, slot = self._place(step)
        until = time.monotonic() + (self._limit or math.inf)
        while step not in self._made:
            left = until - time.monotonic()
            if left <= 0:
                pid = self._processes[worker].pid
                raise Lost(f"loader process {pid} gave no batch for {self._limit:g} s")
            self._take_in(None if left == math.inf else left)
        made = self._made.pop(step)
        if isinstance(made, Failed):
            return made
        parts = {
            name: view.pin_memory() if self._pin else view.clone()
            for name, view in _views(self._room[worker, slot], self._shapes).items()
        }
        self._ask(step + self._ahead * self._workers)
        return Batch(step=step, **{"target_images": None, **made, **parts})

    def end(self) -> None:
        """End all processes, by force: they hold nothing that could be lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_SECONDS_TO_END)
        for pipe in self._pipes:
            pipe.close()

    def _place(self, step: int) -> tuple[int, int]:
        """Return the process that makes a step, and where in its room."""
        turn, worker = divmod(step - self._steps.start, self._workers)
        return worker, turn % self._ahead

    def _ask(self, step: int) -> None:
        if step in self._steps:
            worker, slot = self._place(step)
            with contextlib.suppress(OSError):  # a dead process is noticed where it is waited for
                self._pipes[worker].send((step, slot))

    def _take_in(self, seconds: float | None) -> None:
        """Wait for something to happen, and take in what has been made."""
        ready = wait([*self._pipes, *(child.sentinel for child in self._processes)], seconds)
        gone = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                while pipe.poll():
                    step, made = pipe.recv()
                    self._made[step] = made
            except (EOFError, OSError):  # broken, after all that had come was read
                gone.append(process)
            else:
                gone += [process] if process.sentinel in ready else []
        if gone:
            for process in gone:
                process.join(_SECONDS_TO_END)  # a pipe breaks just before its process is dead
            raise Lost("; ".join(map(_how, gone)))


def _work(dataset: TrainingBatches, room: Tensor, pipe: Connection) -> None:
    """Make batches for as long as they are asked for, in a process of its own."""
    # one thread a worker, and Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shapes = dataset.shapes()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            step, slot = pipe.recv()
            made = outcome(dataset, step)
            if isinstance(made, Failed):
                pipe.send((step, made))
                continue
            for name, view in _views(room[slot], shapes).items():
                view.copy_(getattr(made, name))
            skipped = tuple(reason[: _LONGEST // len(made.skipped)] for reason in made.skipped)
            rest = {"progress": made.progress, "seed": made.seed, "skipped": skipped}
            pipe.send((step, rest))


def outcome(dataset: TrainingBatches, step: int) -> Batch | Failed:
    """Return the batch of `step`, or why it cannot be made."""
    try:
        return dataset[step]
    except Exception as error:  # noqa: BLE001  # raised where it is waited for
        kind = next(
            (word for word in (DataError, MemoryError) if isinstance(error, word)), type(error)
        )
        trace = "".join(traceback.format_exception(error))
        return Failed(kind.__name__, str(error)[:_LONGEST], trace[-_LONGEST:])


def _shared(shape: tuple[int, int, int]) -> Tensor:
    """Return bytes that other processes can write: processes x batches x bytes of a batch.

    Raises:
        EnvironmentFault: There is not so much shared memory.
    """
    try:
        room = torch.empty(shape, dtype=torch.uint8)
        room.share_memory_()  # type: ignore[no-untyped-call]  # torch's own
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"no shared memory (/dev/shm) for {math.prod(shape) / 1e6:.0f} MB of batches: take "
            "fewer machine.workers"
        ) from error
    return room


def _views(slot: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a batch in its bytes."""
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
            return f"loader process {child.pid} was ended by {name}{_HINTS.get(name, '')}"
    how = "closed its pipe" if code is None else f"ended with exit code {code}"
    return f"loader process {child.pid} {how}"
