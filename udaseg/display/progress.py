"""Show the progress of long operations: a live bar on a terminal, plain lines when piped."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
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
from udaseg.text import format_duration, printable

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
        self._unit, self._total, self._first, self._done = unit, total, first, first
        self._line_interval = line_interval
        self._started = self._last_line_time = time.monotonic()
        self._console = open_console(stderr=True)
        self._bar: Progress | None = None
        self._values = ""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal and _shows_info():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}", markup=False),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._operation, total=self._total, completed=self._first, rate="", values=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, done: int, *, values: Mapping[str, float] | None = None, images_per_item: int = 1
    ) -> None:
        """Show that `done` items are finished; `values` stay until they are replaced."""
        self._done = done
        if values is not None:
            self._values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._started)
        rate_text = ""
        if images_per_item:
            unit = "img" if self._unit in ("", "images") else self._unit
            rate_text = f"{rate * images_per_item:.1f} {unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate_text, values=self._values)
        elif self._is_line_due():
            self._last_line_time = time.monotonic()
            eta = format_duration((self._total - done) / rate if rate > 0 else 0)
            count = f"{self._operation} {done}/{self._total} {self._unit}".rstrip()
            parts = (count, rate_text, f"ETA {eta}", self._values)
            log.info("%s", "  ".join(part for part in parts if part))

    def _is_line_due(self) -> bool:
        if self._done == self._total:
            return True
        if self._line_interval is not None:
            return self._done % self._line_interval == 0
        return time.monotonic() - self._last_line_time >= _LINE_INTERVAL_S

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are finished."""
        self.update(self._done + count)


def _shows_info() -> bool:
    """Return whether the terminal shows info messages; it does not with `-q`."""
    return any(
        handler.level <= logging.INFO and not isinstance(handler, logging.FileHandler)
        for handler in logging.getLogger("udaseg").handlers
    )


class LazyProgress(ExitStack):
    """A progress bar that appears with the first call, when the total is known."""

    def __init__(self, operation: str, unit: str = "images") -> None:
        super().__init__()
        self._operation, self._unit = operation, unit
        self._progress: WorkProgress | None = None
        self._finished = False

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the last call closes the bar."""
        if self._finished or total == 0:
            return
        if self._progress is None:
            self._progress = WorkProgress(self._operation, total, unit=self._unit)
            self.enter_context(self._progress)
        self._progress.update(done)
        if done == total:
            self._finished = True
            self.close()
