"""Seeds that are repeated must start from the weights that they were begun with."""

import json
from dataclasses import replace
from functools import partial

import pytest

import udaseg
from udaseg.errors import UsageError
from udaseg.recipe.library import recipes_folder
from udaseg.recipe.load import dump, load
from udaseg.runs.groups import refuse_other_runs


@pytest.fixture
def recipe():
    return load(recipes_folder() / "toyland/rccr.yaml", overrides=["seed=0"])


def begin(folder, recipe, digest=None):
    """Write what a run of seed 0 has when it was begun, from a checkpoint or without one."""
    (folder / "s0").mkdir(parents=True)
    (folder / "s0/recipe.yaml").write_text(dump(recipe))
    if digest is not None:
        start = {"checkpoint": "/old/run.pt", "sha256": digest, "step": 3}
        (folder / "s0/init.json").write_text(json.dumps(start))


def checkpoint(folder, digest):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step-000003.json").write_text(json.dumps({"sha256": digest}))
    return folder


@pytest.mark.parametrize(
    ("begun", "now", "told"),
    [
        ("a", "a", None),
        (None, None, None),
        ("a", "b", "was begun from /old/run.pt, not from this --init"),
        ("a", None, "was begun from /old/run.pt"),
        (None, "b", "was begun without --init"),
    ],
)
def test_another_start_is_refused(tmp_path, recipe, begun, now, told):
    begin(tmp_path / "seeds", recipe, begun)
    init = None if now is None else checkpoint(tmp_path / "start", now)
    if told is None:
        refuse_other_runs(tmp_path / "seeds", recipe, [0, 1], init=init, overwrite=False)
        return
    with pytest.raises(UsageError, match=told):
        refuse_other_runs(tmp_path / "seeds", recipe, [0, 1], init=init, overwrite=False)


def test_settings_that_changed_and_files_in_the_way_are_named(tmp_path, recipe):
    begin(tmp_path, recipe)
    longer = replace(recipe, steps=7)
    with pytest.raises(
        UsageError, match=r"s0: is begun, .* steps was 500 and is now 7. Use another"
    ):
        refuse_other_runs(tmp_path, longer, [0, 1], init=None, overwrite=False)
    refuse_other_runs(tmp_path, longer, [0, 1], init=None, overwrite=True)
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1/notes.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="s1: is not a run folder"):
            refuse_other_runs(tmp_path, recipe, [0, 1], init=None, overwrite=overwrite)


@pytest.mark.parametrize("seeds", [[], [0, 0], ["a"], [-1], [2**31], [0.5], 3, "01"])
def test_seeds_are_checked_before_anything_is_written(tmp_path, monkeypatch, seeds):
    monkeypatch.chdir(tmp_path)
    for call in (partial(udaseg.run_seeds, seeds), partial(udaseg.sweep, seeds=seeds)):
        with pytest.raises(UsageError, match="seeds must be one or more different whole numbers"):
            call(recipe="toyland/rccr") if call.func is udaseg.run_seeds else call("toyland/rccr")
    assert list(tmp_path.iterdir()) == []
