"""Show the progress of long operations: a live bar on a terminal, plain lines when piped."""

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from udaseg.display.console import open_console
from udaseg.text import format_duration, printable

log = logging.getLogger(__name__)
_LINE_INTERVAL_S = 5.0
_WIDEST_BAR, _NARROWEST_BAR = 24, 6
_SEPARATOR = "  "


class WorkProgress:
    """Show progress while the context is open: a bar on a terminal, plain lines when piped.

    The bar has a line of its own, which fits a terminal of 60 columns or more; figures follow on a
    second line.

    Args:
        operation: Name of the operation, such as `predict`.
        total: Total number of items.
        unit: Name of the items.
        first: Items finished before.
        line_interval: Items between two plain lines; None writes a line every five seconds.
        early_lines: Counts of items that get a plain line too.
    """

    def __init__(
        self,
        operation: str,
        total: int,
        *,
        unit: str = "images",
        first: int = 0,
        line_interval: int | None = None,
        early_lines: Collection[int] = (),
    ) -> None:
        # a live bar does not pass the escapes of the console
        self._operation = printable(operation)
        self._unit, self._total, self._first, self._done = unit, total, first, first
        self._line_interval, self._early_lines = line_interval, early_lines
        self._started = self._last_line_time = time.monotonic()
        self._line_of: int | None = None
        self._console = open_console(stderr=True)
        self._live: Live | None = None
        self._images_per_item, self._figures = 1, list[str]()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal and _shows_info():
            self._live = Live(self, console=self._console, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(
        self,
        done: int,
        *,
        values: Mapping[str, float] | None = None,
        brief: Iterable[str] | None = None,
        images_per_item: int = 1,
    ) -> None:
        """Show that `done` items are finished; `values` stay until they are replaced.

        A bar shows those named by `brief`, or all; lines have all.
        """
        self._done, self._images_per_item = done, images_per_item
        if values is not None:
            names = values if brief is None or self._live is None else brief
            self._figures = [f"{name} {values[name]:.4g}" for name in names if name in values]
        is_new = values is not None or done != self._line_of
        if self._live is None and is_new and self._is_line_due():
            self._last_line_time, self._line_of = time.monotonic(), done
            count = f"{self._operation} {self._facts()[0]} {self._unit}".rstrip()
            log.info("%s", _SEPARATOR.join([count, *self._facts()[1:], *self._figures]))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Render the line of the bar and, if there are figures, theirs."""
        facts, width = _SEPARATOR.join(self._facts()), options.max_width
        elapsed = f"{_SEPARATOR}{format_duration(time.monotonic() - self._started)} elapsed"
        room = width - len(facts) - 2 - _NARROWEST_BAR
        if len(self._operation) + len(elapsed) <= room:
            facts, room = facts + elapsed, room - len(elapsed)
        name = Text(self._operation)
        name.truncate(max(1, room), overflow="ellipsis")
        bar = ProgressBar(
            max(1, self._total),
            self._done,
            width=min(_WIDEST_BAR, _NARROWEST_BAR + max(0, room - name.cell_len)),
        )
        line = Table.grid(padding=(0, 1))
        for _column in range(3):
            line.add_column(no_wrap=True)
        line.add_row(name, bar, facts)
        yield line
        if figures := _fitting(self._figures, width - 2):
            yield Text(f"  {figures}", no_wrap=True)

    def _facts(self) -> list[str]:
        """Return the count, the rate and the time that is left."""
        rate = (self._done - self._first) / max(1e-9, time.monotonic() - self._started)
        facts = [f"{self._done}/{self._total}"]
        if self._images_per_item:
            unit = "img" if self._unit in ("", "images") else self._unit
            facts.append(f"{rate * self._images_per_item:.1f} {unit}/s")
        left = format_duration((self._total - self._done) / rate) if rate > 0 else "-:--:--"
        return [*facts, f"ETA {left}"]

    def _is_line_due(self) -> bool:
        if self._done == self._total or self._done in self._early_lines:
            return True
        if self._line_interval is not None:
            return self._done % self._line_interval == 0
        return time.monotonic() - self._last_line_time >= _LINE_INTERVAL_S

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are finished."""
        self.update(self._done + count)


def _fitting(figures: Iterable[str], width: int) -> str:
    """Return the first figures that fit whole in `width` columns."""
    line = ""
    for figure in figures:
        longer = f"{line}{_SEPARATOR}{figure}" if line else figure
        if len(longer) > width:
            break
        line = longer
    return line


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
