"""Run the command line inside the test process."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

import pytest

from udaseg.cli.main import main


class CommandOutput(NamedTuple):
    """The output of a command."""

    stdout: str
    stderr: str


def udaseg(*words, cwd, expect=0):
    """Run the command line in this process, from folder `cwd`, and return its output."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["udaseg", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    code = stopped.value.code or 0
    assert code == expect, f"exit {code}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    return CommandOutput(out.getvalue(), err.getvalue())
