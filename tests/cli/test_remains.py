"""What a killed or deleted run leaves goes on with one command, and `verify` is right after it."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.cli.running import udaseg
from tests.support.toy import TINY
from udaseg.errors import RecipeError
from udaseg.recipe.load import load
from udaseg.runs.checkpoint import newest_checkpoint
from udaseg.training import resume


def train(root, out, *words, expect=0):
    return udaseg(
        *("train", "toyland/source_only", "--root", root, "--out", out, "--steps", 1),
        *(*TINY, "validation.data=null", *words),
        cwd=out.parent,
        expect=expect,
    ).stderr


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train(root, out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def verify(run, expect=0):
    return udaseg("verify", run, cwd=run.parent, expect=expect).stderr


@pytest.mark.parametrize("is_finished", [True, False])
def test_resume_writes_the_files_again_that_a_killed_start_did_not(root, run, is_finished):
    for name in ("command.txt", "environment.json"):
        (run / name).unlink()
    if not is_finished:
        for name in ("checkpoints", "status.json", "metrics.jsonl", "train.log"):
            shutil.rmtree(run / name) if name == "checkpoints" else (run / name).unlink()
    assert "environment.json: is missing; --resume writes it again" in verify(run, expect=3)
    udaseg("train", "--resume", run, "--root", root, cwd=run.parent)
    verify(run)
    assert (run / "command.txt").read_text().startswith("udaseg train --resume")
    assert json.loads((run / "environment.json").read_text())["processes"] == 1


def test_without_environment_a_checkpoint_tells_the_number_of_processes(run, monkeypatch):
    recipe = load(run / "recipe.yaml", stored=True)
    checkpoint = newest_checkpoint(run / "checkpoints")
    (run / "environment.json").unlink()
    monkeypatch.setattr(resume, "world_size", lambda: 2)
    for processes in (1, 2):
        stored = replace(checkpoint, processes=processes)
        monkeypatch.setattr(resume.checkpoints, "newest_checkpoint", lambda _, c=stored: c)
        if processes == 2:
            assert resume.find_resume_checkpoint(run, recipe) is stored
        else:
            with pytest.raises(RecipeError, match="1 before, 2 now"):
                resume.find_resume_checkpoint(run, recipe)


def test_a_run_without_its_recipe_is_started_again_by_overwrite_alone(root, run):
    (run / "recipe.yaml").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    said = train(root, run, expect=2)
    assert "use --overwrite to start again" in said
    assert "--resume" not in said
    said = udaseg("train", "--resume", run, "--root", root, cwd=run.parent, expect=3).stderr
    assert "start the run again with its recipe and --out" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    train(root, run, "--overwrite")
    verify(run)


def test_what_a_run_leaves_whose_folder_was_deleted_is_no_run(root, run):
    status = (run / "status.json").read_bytes()
    shutil.rmtree(run)
    run.mkdir()
    (run / "status.json").write_bytes(status)
    train(root, run)
    verify(run)


def test_several_seeds_go_on_over_what_is_left_of_one(root, run, tmp_path):
    out = tmp_path / "seeds"
    (out / "s1").mkdir(parents=True)
    for name in ("status.json", ".abcdefgh.tmp"):
        shutil.copy(run / "status.json", out / "s1" / name)
    run.rename(out / "s0")
    before = {path: path.stat().st_mtime_ns for path in (out / "s0").rglob("*")}
    train(root, out, "--seeds", "0,1")
    assert {path: path.stat().st_mtime_ns for path in (out / "s0").rglob("*")} == before
    verify(out)


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["status.json", "train.log", "checkpoints/model.pt"])
def test_a_folder_of_another_program_is_never_taken_for_a_run(root, tmp_path, name, words):
    path = tmp_path / "other" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"state": "done"}')
    said = train(root, tmp_path / "other", *words, expect=2)
    assert "is not a run folder" in said
    assert "choose another --out" in said
    assert path.read_text() == '{"state": "done"}'
