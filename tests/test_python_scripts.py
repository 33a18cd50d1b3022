"""A plain script without `if __name__ == "__main__"` can start everything that uses processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy import TINY, toy_root

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = """
import ast, sys
print("started")
import udaseg
from udaseg.data.toyland.writer import write
from pathlib import Path
write(Path("other"), seed=1, size=(32, 64), counts=COUNTS, workers=2)
run = udaseg.adapt("toyland/dacs", steps=2, overrides=WORDS, out="run")
print("finished", run.finished)
"""


@pytest.mark.slow
def test_a_script_renders_and_trains_with_processes_and_runs_once(tmp_path):
    toy_root(tmp_path / "data")
    pairs = dict(word.split("=", 1) for word in TINY)
    overrides = "{" + ", ".join(f"{key!r}: {_value(text)}" for key, text in pairs.items())
    overrides += ", 'machine.workers': 2, 'machine.preview_every': 0}"
    counts = "{'source/train': 20, 'source/val': 1, 'target/train': 1, 'target/val': 1}"
    script = tmp_path / "plain.py"
    text = SCRIPT.replace("WORDS", overrides).replace("COUNTS", counts)
    script.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["started", "finished", "True"]


def _value(text):
    return {"null": "None"}.get(text, text if text[0] in "[0123456789" else repr(text))
