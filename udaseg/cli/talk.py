"""Where log lines go: stderr, readable and harmless on a terminal."""

import logging
import os

import typer

from udaseg.errors import UsageError
from udaseg.recipe import printable

_OWN = "udaseg.data.loader"
"""Who reads files that no other process reads."""


class _Talk(logging.Handler):
    """Log lines to stderr, whichever stream that is at the time, without control characters."""

    def __init__(self, level: int) -> None:
        self._rank = int(os.environ.get("RANK", "0"))
        super().__init__(level if self._rank == 0 else max(level, logging.WARNING))

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the first of several processes talk; the others tell what only they meet."""
        if self._rank == 0:
            return True
        return record.name == _OWN and record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        who = f"process {self._rank}: " if self._rank else ""
        typer.echo(printable(f"{who}{level}{self.format(record)}"), err=True)


def talk(verbose: bool, quiet: bool) -> None:
    """Let the package talk to stderr; may be called again."""
    if verbose and quiet:
        raise UsageError("-v says more, -q says less; give one of them")
    logger = logging.getLogger("udaseg")
    for handler in logger.handlers[:]:
        if isinstance(handler, _Talk):
            logger.removeHandler(handler)
    handler = _Talk(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
