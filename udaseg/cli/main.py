"""Turns the exceptions of commands into one message on stderr and an exit code."""

import errno
import itertools
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from udaseg.cli.app import app
from udaseg.cli.mistakes import command_line_message
from udaseg.cli.streams import open_streams
from udaseg.errors import EnvironmentFault, RankFailed, RecipeError, UdasegError, UsageError
from udaseg.text import printable, shortened

_CommandLineError: Any = typer.BadParameter.__base__
"""What typer raises for words that it cannot parse; it exports only this one of its subclasses."""

_SHARED_COMMANDS = (["train"], ["adapt"], ["eval"], ["predict"])
_SIGNAL_CODE_BASE = 128
_SIGNAL_WAIT_S, _FAILURE_WAIT_S = 2.0, 10.0

# Errors of the operating system that the user can fix; they are not bugs.
_MACHINE_FAULTS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EACCES: "no permission; choose another folder",
    errno.EPERM: "no permission; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is longer than the file system allows; choose a shorter one",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EEXIST: "is a file where a folder is needed; move it, or choose another folder",
    errno.EISDIR: "is a folder where a file is needed; move it, or choose another path",
    errno.ELOOP: "is a link that leads back to itself; remove it, or choose another path",
}


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a code of `udaseg.errors`.

    Args:
        words: The arguments after `udaseg`; None takes `sys.argv`.
    """
    arguments = list(sys.argv[1:] if words is None else words)
    open_streams()
    sys.exit(_run([word for word in arguments if word != "--debug"], debug="--debug" in arguments))


def _run(arguments: list[str], debug: bool) -> int | str | None:
    try:
        _refuse_torchrun(arguments)
        _refuse_empty(arguments)
        # standalone, typer would print its messages itself, with some characters not escaped
        return app(args=arguments, prog_name="udaseg", standalone_mode=False) or 0
    except SystemExit as stop:
        return stop.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # last resort; --debug shows the traceback
        message, code = _describe(error, debug)
        # before the process group exists, all processes of torchrun meet the same error
        reported_elsewhere = os.environ.get("RANK", "0") != "0"
        if isinstance(error, RankFailed):
            reported_elsewhere = error.reported_elsewhere
        if reported_elsewhere:
            return _wait_for_torchrun(code)
        if debug:
            typer.echo(printable(traceback.format_exc()), err=True)
        typer.echo(printable(message), err=True)
        return code


def _describe(error: Exception, debug: bool) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, RecipeError):  # a line for each problem
        lines = str(error).splitlines()
        return "\n".join(f"error: {line}" for line in lines), error.exit_code
    if isinstance(error, UdasegError):
        return f"error: {error}", error.exit_code
    if isinstance(error, _CommandLineError):
        return command_line_message(error), error.exit_code
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        path = f"{shortened(str(error.filename), 300)}: " if error.filename is not None else ""
        return f"error: {path}{_MACHINE_FAULTS[error.errno]}", EnvironmentFault.exit_code
    if isinstance(error, MemoryError):
        message = "error: out of memory; use a smaller batch or smaller crops"
        return message, EnvironmentFault.exit_code
    description = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "" if debug else " (run with --debug for the traceback)"
    return f"unexpected error: {description}{hint}", 1


def _refuse_torchrun(arguments: Sequence[str]) -> None:
    """Refuse commands that every process would run in full, overwriting the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and arguments[:1] not in _SHARED_COMMANDS:
        raise UsageError(
            "torchrun works only with `udaseg train`, `adapt`, `eval` and `predict`; run this "
            "without torchrun"
        )


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse empty words: as a path, they would mean the current folder."""
    for before, word in itertools.pairwise(["udaseg", *arguments]):
        if not word or (word.startswith("--") and word.find("=") == len(word) - 1):
            place = (
                f"the word after {shortened(before)} is empty" if not word else f"{word} is empty"
            )
            raise UsageError(f"{place}; is a shell variable not set?")


def _wait_for_torchrun(code: int) -> int:
    """Wait for torchrun to end this process, which it does when the reporting one has ended.

    If this process ended first, torchrun would kill the reporting one, perhaps in the middle of
    its message.
    """
    time.sleep(_SIGNAL_WAIT_S if code > _SIGNAL_CODE_BASE else _FAILURE_WAIT_S)
    return code
