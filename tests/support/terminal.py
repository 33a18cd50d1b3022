"""Run the command line on a terminal, and find what a terminal must never be sent."""

import contextlib
import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from udaseg.cli.main import main
from udaseg.cli.verbosity import set_verbosity

# Our styles (bold, dim, italic, red, yellow, cyan, ...; none has a background or blinks), the moves
# of a progress bar, and line ends.
_OWN = re.compile(
    r"\x1b\[(?:[0-3]|[1-3];)?(?:3[0-9]|38;5;[0-9]{1,3})?m"
    r"|\r?\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh]|\r?\n"
)
_FORBIDDEN = re.compile(
    "[^\t\x20-\x7e\xa0-\U0010ffff]|[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)


def forbidden(sent: str) -> list[str]:
    """Return what was sent that may change or hide what a terminal shows, with its surroundings."""
    rest = _OWN.sub("", sent)
    return [rest[max(0, hit.start() - 60) : hit.end() + 20] for hit in _FORBIDDEN.finditer(rest)]


def on_terminal(*words: object, cwd: Path, width: int = 120) -> tuple[int, str]:
    """Run the command line in this process with a terminal as stdout and stderr.

    Returns:
        The exit code, and all that the process sent to the terminal, also from C libraries.
    """
    received: list[bytes] = []
    with _terminal(received, width), contextlib.chdir(cwd), _arguments(words):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    assert isinstance(code, int), code
    return code, b"".join(received).decode("utf-8", "surrogateescape")


def drawn_on_terminal(width: int, draw: Callable[[], None]) -> str:
    """Return what `draw` sends to a terminal of this width that shows info messages."""
    received: list[bytes] = []
    with _terminal(received, width):
        set_verbosity(False, False)
        draw()
    return b"".join(received).decode()


def plain(sent: str) -> str:
    """Return what was sent without our own styles, moves and returns."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", sent)


def _arguments(words: tuple[object, ...]) -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(sys, "argv", ["udaseg", *map(str, words)])


@contextlib.contextmanager
def _terminal(received: list[bytes], width: int) -> Iterator[None]:
    """Make a new terminal stdout and stderr of this process; `received` gets what it is sent."""
    master, slave = pty.openpty()
    reader = threading.Thread(target=_read, args=(master, received))
    reader.start()
    kept = [os.dup(1), os.dup(2)]
    environment = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "40"}
    try:
        os.dup2(slave, 1)
        os.dup2(slave, 2)
        with (
            os.fdopen(os.dup(slave), "w", encoding="utf-8") as out,
            os.fdopen(os.dup(slave), "w", encoding="utf-8") as err,
            mock.patch.dict(os.environ, environment),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(slave)
        reader.join()
        os.close(master)


def _read(master: int, received: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # raised when the last writer has closed the terminal
        while data := os.read(master, 2**16):
            received.append(data)
