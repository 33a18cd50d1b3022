"""Run work in a separate process and measure its time and peak memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_SCRIPT = """
import json, sys, time
from pathlib import Path
{imports}
from udaseg.errors import UdasegError

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000

{warm}
for path in map(Path, json.loads(sys.stdin.read())):
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    started, error, said = time.monotonic(), "", ""
    try:
        {work}
    except UdasegError as fault:
        error, said = type(fault).__name__, str(fault)
    took = time.monotonic() - started
    print(json.dumps([str(path), error, said, took, peak()]), flush=True)
"""


def measured(
    paths: list[Path], work: str, *, imports: str, warm: str = ""
) -> list[tuple[Path, str, str, float, float]]:
    """Run `work` for each `path`; return path, error type and text, seconds and peak MB.

    Args:
        paths: Files to process one after another.
        work: An expression that uses `path`.
        imports: Import statements that `work` needs.
        warm: A statement to run first, so that imports are not measured.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux, to measure peaks of memory")
    script = _SCRIPT.format(work=work, imports=imports, warm=warm)
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    return [(Path(row[0]), *row[1:]) for row in found]
