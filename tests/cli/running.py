"""Running the command line inside the test's own process."""

import contextlib
import io
from typing import NamedTuple

import pytest

from udaseg.cli import main


class Said(NamedTuple):
    """What a command wrote."""

    stdout: str
    stderr: str


def udaseg(*words, cwd, expect=0):
    """Run the command line in this process, from folder `cwd`, and return what it said."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main([str(word) for word in words])
    code = stopped.value.code or 0
    assert code == expect, f"exit {code}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    return Said(out.getvalue(), err.getvalue())
