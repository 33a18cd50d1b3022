"""Seeds that are repeated must start from the weights that they were begun with."""

import json

import pytest

from udaseg.errors import UsageError
from udaseg.experiments.seeds import refuse_other_recipes
from udaseg.recipe.library import recipes_folder
from udaseg.recipe.load import dump, load


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
        refuse_other_recipes([0, 1], recipe, tmp_path / "seeds", init)
        return
    with pytest.raises(UsageError, match=told):
        refuse_other_recipes([0, 1], recipe, tmp_path / "seeds", init)
