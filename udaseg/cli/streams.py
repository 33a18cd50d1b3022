"""Standard streams that drop what they cannot write, so that no result depends on them."""

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO


class _Dropping(io.FileIO):
    """A standard stream, such as a full disk or a terminal that is gone; it raises no error."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._is_stdout, self._has_failed = stream is sys.stdout, False

    def write(self, data: Any) -> int:
        """Write `data`, or drop it."""
        try:
            return super().write(data) or len(data)
        except OSError as error:
            # a reader that has gone, such as `head`, wants no more
            if self._is_stdout and not (self._has_failed or isinstance(error, BrokenPipeError)):
                sys.stderr.write(f"warning: stdout is incomplete: {error.strerror}\n")
            self._has_failed = True
            return len(data)


def open_streams() -> None:
    """Replace the standard streams of the process by streams that never fail.

    Names that the terminal cannot encode are escaped.
    """
    _open_closed_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if name == "stdout" and os.environ.get("RANK", "0") != "0":  # rank 0 prints the results
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        elif stream is None:  # it was closed before the start
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            writer = io.TextIOWrapper(
                io.BufferedWriter(_Dropping(stream)),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, writer)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _open_closed_descriptors() -> None:
    """Open stdin, stdout and stderr if closed: the next file would get the number of one of them.

    What a C library prints would then go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number
