"""Where log lines go: stderr, readable and harmless on a terminal."""

import logging

import typer

from udaseg.errors import UsageError
from udaseg.recipe import printable


class _Talk(logging.Handler):
    """Log lines to stderr, whichever stream that is at the time, without control characters."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        typer.echo(printable(f"{level}{self.format(record)}"), err=True)


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
