"""The first SIGINT, SIGTERM or SIGHUP stops the loop after the current step.

A second SIGINT or SIGTERM exits at once. SIGHUP says that the terminal has closed; often it comes
twice, and under `nohup` it stays ignored.

Several processes all stop after the same step and ignore a second signal: torchrun forwards signals
that the job manager has already sent to each process, and kills processes that take too long.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor

from udaseg.distributed import all_reduce_max, world_size
from udaseg.errors import Interrupted

_HANG_UP = getattr(signal, "SIGHUP", None)
"""None on Windows, which has no such signal."""

_SIGNALS = tuple(number for number in (_HANG_UP, signal.SIGINT, signal.SIGTERM) if number)
"""In rising order: if ranks receive different ones, the greatest is that of the run."""


class StopSignal:
    """Context manager in which a signal sets `number` instead of killing the process.

    In another thread than the main one, signals are left as they are.

    Attributes:
        number: The signal received by this process or, after `stop_requested`, by another rank;
            None if there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._pid = os.getpid()
        self._message: str | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread handle signals
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != _HANG_UP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def received(self) -> Tensor:
        """Return a count of each signal that this process received, to be summed over ranks."""
        return torch.tensor([float(self.number == number) for number in _SIGNALS])

    def agree(self, received: Sequence[float]) -> bool:
        """Return whether any rank received a signal; `received` are the sums over ranks."""
        agreed = [number for number, count in zip(_SIGNALS, received, strict=True) if count]
        if agreed:
            self.number = int(agreed[-1])
        return bool(agreed)

    def stop_requested(self) -> bool:
        """Return whether any rank received a signal; all ranks must call it at the same point."""
        if world_size() == 1:
            return self.number is not None
        # a signal during the reduction counts at the next call: other ranks do not know of it yet
        agreed = all_reduce_max(self.number or 0)
        if agreed:
            self.number = agreed
        return agreed > 0

    @contextlib.contextmanager
    def interruptible(self, message: str) -> Iterator[None]:
        """Raise `Interrupted` at a signal in this context; only in single-process runs."""
        self._message = message
        try:
            self._raise_if_interrupted()
            yield
        finally:
            self._message = None

    def _raise_if_interrupted(self) -> None:
        if self.number is not None and self._message is not None and world_size() == 1:
            message, self._message = self._message, None
            raise Interrupted(message, self.number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.number is not None and world_size() == 1:
            if number == _HANG_UP:
                return
            os._exit(128 + number)
        self.number = number
        self._raise_if_interrupted()
