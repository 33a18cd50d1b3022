"""Logging to stderr, with control characters escaped."""

import logging
import os

import typer

from udaseg.errors import UsageError
from udaseg.text import printable

_FILE_LOGGERS = ("udaseg.data.loading.workers", "udaseg.prediction.images")
"""Loggers whose warnings concern files that only this process reads."""


class _StderrHandler(logging.Handler):
    """Writes log lines to the current stderr, without control characters."""

    def __init__(self, level: int) -> None:
        self._rank = int(os.environ.get("RANK", "0"))
        super().__init__(level if self._rank == 0 else max(level, logging.WARNING))

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass all records of rank 0, and warnings about their files of the other ranks."""
        if self._rank == 0:
            return True
        return record.name in _FILE_LOGGERS and record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        source = f"process {self._rank}: " if self._rank else ""
        typer.echo(printable(f"{source}{level}{self.format(record)}"), err=True)


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Send the log of the package to stderr; replaces an earlier setting."""
    if verbose and quiet:
        raise UsageError("-v and -q contradict each other; give only one")
    level = logging.DEBUG if verbose else logging.INFO
    logger = logging.getLogger("udaseg")
    others = [handler for handler in logger.handlers if not isinstance(handler, _StderrHandler)]
    logger.handlers[:] = [*others, _StderrHandler(logging.WARNING if quiet else level)]
    logger.setLevel(level)
