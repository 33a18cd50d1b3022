"""Data that a recipe names by a relative path are found from other folders than the run's."""

import json
import shutil

import pytest

from tests.cli.running import udaseg
from tests.support import files
from tests.support.toy import TINY, toy_root
from udaseg.recipe.library import recipes_folder
from udaseg.recipe.load import load
from udaseg.runs.folder import located, with_data_names, with_located_data


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run that was started in `home` with the target `photos`."""
    (tmp_path / "home/photos").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    paths = {"photos": str(tmp_path / "home/photos"), "gone": str(tmp_path / "home/gone")}
    (tmp_path / "run/environment.json").write_text(json.dumps({"data": paths}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_what_is_not_here_is_where_the_run_was_started(run, tmp_path):
    home = str(tmp_path / "home/photos")
    assert located("photos", run) == home
    assert located("gone", run) == "gone"  # neither here nor there
    assert located("gta5", run) == "gta5"  # the name of a prepared set
    (tmp_path / "photos").mkdir()
    assert located("photos", run) == "photos"


def test_a_recipe_is_located_and_gets_its_names_back(run, tmp_path):
    recipe = load(recipes_folder() / "toyland/rccr.yaml", overrides=["target.data=photos"])
    there = with_located_data(recipe, run)
    assert there.target.data == str(tmp_path / "home/photos")
    assert there.source.data == recipe.source.data
    assert with_data_names(there, recipe) == recipe


@pytest.mark.slow
def test_a_run_on_a_relative_folder_is_selected_and_resumed_elsewhere(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    other.mkdir()
    root = toy_root(tmp_path / "data")
    for number in range(2):
        files.put(home / f"photos/{number}.png", files.image_png(64, 128, number))
    words = ["--steps", 2, "--target", "photos/", "--out", tmp_path / "run", *TINY]
    udaseg("adapt", "toyland/dacs", "--root", root, *words, cwd=home)
    assert "chosen" in udaseg("select", tmp_path / "run", "--root", root, cwd=other).stdout
    shutil.rmtree(tmp_path / "run/checkpoints")
    udaseg("adapt", "--resume", tmp_path / "run", "--root", root, cwd=other)
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
