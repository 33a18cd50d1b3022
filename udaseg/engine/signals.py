"""The first SIGINT or SIGTERM asks the loop to stop after the step; the second exits at once.

Of several processes all stop after the same step, and a second signal changes nothing: torchrun
passes on what a job manager has sent to each process already, and kills what takes too long.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from udaseg.distributed import largest_over_ranks, world_size
from udaseg.errors import Interrupted

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context in which a signal sets `number` instead of killing the process.

    Attributes:
        number: The signal that came, here or, once `asked` told so, to another rank; or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._pid = os.getpid()
        self._saying: str | None = None
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

    def asked(self) -> bool:
        """Return whether any rank got a signal, the same on all; all ask at the same point."""
        if world_size() == 1:
            return self.number is not None
        # one that comes while the ranks talk is for the next time: the others have not heard of it
        agreed = largest_over_ranks(self.number or 0)
        if agreed:
            self.number = agreed
        return agreed > 0

    @contextlib.contextmanager
    def breaking_off(self, saying: str) -> Iterator[None]:
        """Let a signal break off what has nothing to save, with `Interrupted`, in one process."""
        self._saying = saying
        try:
            self._break_off()
            yield
        finally:
            self._saying = None

    def _break_off(self) -> None:
        if self.number is not None and self._saying is not None and world_size() == 1:
            saying, self._saying = self._saying, None
            raise Interrupted(saying, self.number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.number is not None and world_size() == 1:
            os._exit(128 + number)
        self.number = number
        self._break_off()
