"""What killed commands left in a run folder is removed by the next one that writes there."""

import shutil
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pytest

import udaseg
from tests.support.kills import die_at
from tests.support.small import shipped
from udaseg.files import open_atomic, write_json
from udaseg.recipe.load import dump
from udaseg.runs.calibration_file import write_calibration
from udaseg.runs.leftovers import writing_in_run

FOLDERS = ("", "eval/a", "previews", "stages/2-x/pseudo_labels", "checkpoints/best-entropy")
KEPT = ("status.json", ".mine.tmp", ".abcdefgh.tmp.txt", "eval/a/masks/.abcdefgh.tmp")


@pytest.fixture
def run(tmp_path):
    """Return a run folder with leftovers in each folder that a command writes to."""
    run = tmp_path / "run"
    for folder in FOLDERS:
        (run / folder).mkdir(parents=True, exist_ok=True)
        (run / folder / ".abcd_123.tmp").write_bytes(b"half")
    for name in ("recipe.yaml", "checkpoints/best-entropy/step-000004.pt.tmp", *KEPT):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"x")
    (run / ".export-abcd1234").mkdir()
    (run / ".export-abcd1234/model.onnx").write_bytes(b"half")
    return run


def names(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def test_leftovers_go_and_nothing_else(run):
    with writing_in_run(run):
        assert names(run) == sorted([*KEPT, "recipe.yaml"])
    assert not (run / ".export-abcd1234").exists()


def test_what_a_living_process_writes_stays_and_goes_once_it_was_killed(run):
    def be_killed():
        with writing_in_run(run), open_atomic(run / "selection.json") as file:
            file.write(b"half")
            begun.set()
            die.wait(60)
            die_at(1)
            write_json(run / "more.json", {})

    context = get_context("fork")
    begun, die = context.Event(), context.Event()
    process = context.Process(target=be_killed)
    process.start()
    begun.wait(60)
    with writing_in_run(run):
        assert [path for path in run.glob(".*.tmp") if path.read_bytes() == b""]
    die.set()
    process.join()
    assert process.exitcode != 0
    with writing_in_run(run):
        assert names(run) == sorted([*KEPT, "recipe.yaml"])


def test_a_folder_that_is_no_run_keeps_all(run):
    (run / "recipe.yaml").unlink()
    before = names(run)
    with writing_in_run(run):
        assert names(run) == before


def test_commands_sweep_where_they_write(run):
    """`calibrate` and `report` here; `adapt`, `eval`, `select` and `export` in campaigns."""
    checkpoint = run / "checkpoints/step-000004.pt"
    checkpoint.write_bytes(b"x")
    write_calibration(checkpoint, "student", {"temperature": 1.0})
    assert names(run) == sorted(
        [*KEPT, "recipe.yaml", "calibration.json", "checkpoints/step-000004.pt"]
    )
    (run / ".abcd_123.tmp").write_bytes(b"half")
    (run / "recipe.yaml").write_text(dump(shipped("toyland/rccr")))
    udaseg.report(run, images=0)
    assert not (run / ".abcd_123.tmp").exists()
    assert (run / "report.html").is_file()


def test_names_of_leftovers_are_those_that_python_gives(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    for _ in range(50):
        tempfile.mkstemp(dir=tmp_path, prefix=".", suffix=".tmp")
    Path(tempfile.mkdtemp(dir=tmp_path, prefix=".export-"))
    with writing_in_run(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    shutil.rmtree(tmp_path)
