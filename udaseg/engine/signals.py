"""The first SIGINT or SIGTERM asks the loop to stop after the step; the second exits at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context in which a signal sets `number` instead of killing the process.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in _CAUGHT:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
