"""Run the command line inside the test process."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
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


def without_torch(words, cwd):
    """Run the command line in a process that has no torch, and return what it prints."""
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision'): sys.modules[name] = None\n"
        f"from udaseg.cli.main import main; main({words!r})"
    )
    repository = Path(__file__).resolve().parents[2]
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(repository)}
    out = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return out.stdout
