"""From what a command raises to one message on stderr and an exit code."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from udaseg.cli.app import app
from udaseg.errors import RankFailed, RecipeError, UdasegError, UsageError
from udaseg.recipe import printable

_SIGNALS = 128
_SIGNAL_S, _FAILURE_S = 2.0, 10.0

# A write that these end is the machine's fault, not ours.
_MACHINE_FAULTS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file is larger than allowed here",
    errno.EACCES: "no permission; choose another folder",
    errno.EPERM: "no permission; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
}


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of `udaseg.errors`.

    Args:
        words: The words after `udaseg`; None takes the process's.
    """
    given = list(sys.argv[1:] if words is None else words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that the terminal's encoding cannot show
            stream.reconfigure(errors="backslashreplace")
    code = _run([word for word in given if word != "--debug"], debug="--debug" in given)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, say `head`, has gone: nothing to say, no one to say it to
        sys.stdout = None  # or Python flushes again at exit
    sys.exit(code)


def _run(words: list[str], debug: bool) -> int | str | None:
    try:
        _refuse_torchrun(words)
        app(args=words, prog_name="udaseg")
    except SystemExit as stop:
        return stop.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except RankFailed as error:
        if error.told:
            return _after_the_one_that_tells(error.exit_code)
        return _say(f"error: {error}", error.exit_code, debug)
    except UdasegError as error:
        # a recipe's lines begin with file:line:col, for editors that jump there
        prefix = "" if isinstance(error, RecipeError) else "error: "
        return _failed(f"{prefix}{error}", error.exit_code, debug)
    except OSError as error:
        if error.errno in _MACHINE_FAULTS:
            named = f"{error.filename}: " if error.filename is not None else ""
            return _failed(f"error: {named}{_MACHINE_FAULTS[error.errno]}", 5, debug)
        return _unexpected(error, debug)
    except MemoryError:
        return _failed("error: out of memory; take a smaller batch or smaller crops", 5, debug)
    except Exception as error:  # noqa: BLE001  # the last line of defence; --debug shows it all
        return _unexpected(error, debug)
    return 0


def _refuse_torchrun(words: Sequence[str]) -> None:
    """Refuse what several processes would each do whole, over one another."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and words[:1] not in (["train"], ["adapt"]):
        raise UsageError("torchrun is for `udaseg train` and `udaseg adapt`; start one process")


def _unexpected(error: Exception, debug: bool) -> int:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "" if debug else " (run with --debug for the traceback)"
    return _failed(f"unexpected error: {what}{hint}", 1, debug)


def _failed(message: str, code: int, debug: bool) -> int:
    # what the processes of torchrun meet before they know of each other, they meet alike
    if os.environ.get("RANK", "0") != "0":
        return _after_the_one_that_tells(code)
    return _say(message, code, debug)


def _after_the_one_that_tells(code: int) -> int:
    """Wait until torchrun ends this process, as it does once the one that tells has ended.

    It would end that one, perhaps in the middle of its words, if this one ended first.
    """
    time.sleep(_SIGNAL_S if code > _SIGNALS else _FAILURE_S)
    return code


def _say(message: str, code: int, debug: bool) -> int:
    if debug:
        typer.echo(printable(traceback.format_exc()), err=True)
    typer.echo(printable(message), err=True)
    return code
