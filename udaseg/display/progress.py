"""Show the progress of long operations: a live bar on a terminal, plain lines when piped."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from udaseg.display.console import open_console
from udaseg.text import printable

log = logging.getLogger(__name__)
_LINE_INTERVAL_S = 5.0


class WorkProgress:
    """Show progress while the context is open: a bar on a terminal, plain lines when piped.

    Args:
        operation: Name of the operation, such as `predict`.
        total: Total number of items.
        unit: Name of the items.
        first: Items finished before.
        line_interval: Items between two plain lines; None writes a line every five seconds.
    """

    def __init__(
        self,
        operation: str,
        total: int,
        *,
        unit: str = "images",
        first: int = 0,
        line_interval: int | None = None,
    ) -> None:
        # a live bar does not pass the escapes of the console
        self._operation = printable(operation)
        self._unit, self._total, self._first = unit, total, first
        self._rate_unit = "img" if unit in ("", "images") else unit
        self._done = first
        self._line_interval = line_interval
        self._last_line_time = time.monotonic()
        self._started = time.monotonic()
        self._console = open_console(stderr=True)
        self._bar: Progress | None = None
        self._facts = ""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal and _shows_info():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._operation, total=self._total, completed=self._first, rate="", facts=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, *, facts: str | None = None, items_per_unit: int = 1) -> None:
        """Show that `done` items are finished; `facts` stays until it is replaced."""
        self._done = done
        if facts is not None:
            self._facts = facts
        elapsed = max(1e-9, time.monotonic() - self._started)
        rate = (done - self._first) / elapsed
        if self._bar is not None:
            rate_text = f"{rate * items_per_unit:.1f} {self._rate_unit}/s" if items_per_unit else ""
            self._bar.update(self._task, completed=done, rate=rate_text, facts=self._facts)
        elif self._line_due(done):
            self._last_line_time = time.monotonic()
            remaining = (self._total - done) / rate if rate > 0 else 0
            line = f"{self._operation} {done}/{self._total} {self._unit}"
            if items_per_unit:
                line += f"  {rate * items_per_unit:.1f} {self._rate_unit}/s"
            log.info("%s", f"{line}  ETA {_format_duration(remaining)}  {self._facts}".rstrip())

    def _line_due(self, done: int) -> bool:
        if done == self._total:
            return True
        if self._line_interval is not None:
            return done % self._line_interval == 0
        return time.monotonic() - self._last_line_time >= _LINE_INTERVAL_S

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are finished."""
        self.update(self._done + count)


class TrainingProgress(WorkProgress):
    """Show the progress of training steps with the current losses.

    Args:
        steps: Steps of the run.
        first: Steps finished before.
        line_interval: Steps between two updates of the losses.
    """

    def __init__(self, *, steps: int, first: int, line_interval: int) -> None:
        super().__init__("step", steps, unit="", first=first, line_interval=line_interval)

    def step(self, done: int, losses: Mapping[str, float] | None, *, images: int) -> None:
        """Show that `done` steps are finished; `losses`, if given, replace those shown."""
        facts = None
        if losses is not None:
            facts = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self.update(done, facts=facts, items_per_unit=images)


def _shows_info() -> bool:
    """Return whether the terminal shows info messages; it does not with `-q`."""
    return any(
        handler.level <= logging.INFO and not isinstance(handler, logging.FileHandler)
        for handler in logging.getLogger("udaseg").handlers
    )


def _format_duration(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


class LazyProgress:
    """A progress bar that appears with the first call, when the total is known."""

    def __init__(self, operation: str, unit: str = "images") -> None:
        self._operation, self._unit = operation, unit
        self._stack = ExitStack()
        self._progress: WorkProgress | None = None
        self._finished = False

    def __enter__(self) -> "LazyProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the last call closes the bar."""
        if self._finished or total == 0:
            return
        if self._progress is None:
            self._progress = self._stack.enter_context(
                WorkProgress(self._operation, total, unit=self._unit)
            )
        self._progress.update(done)
        if done == total:
            self._finished = True
            self._stack.close()
