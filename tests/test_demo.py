"""`udaseg demo` shows source only, AdaBN and RCCR, all that it claims, and a loss as a loss."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import udaseg
from tests.runs.test_scores import SCORES
from udaseg.demo import demo
from udaseg.recipe.request import load_recipe


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Replace what trains and paints; return what was called, by name."""
    called, mious = {"adapt": [], "grid": []}, {"warm_up": 0.2, "adabn": 0.30, "rccr": 0.28}

    def scores(name):
        return replace(SCORES, means={"mIoU": mious[name]})

    def adapt(recipe, *, out, **given):
        called["adapt"].append((recipe, given))
        return SimpleNamespace(
            scores={"toyland-target-val": scores(out.name)},
            recipe=load_recipe(recipe, overrides=given["overrides"]),
        )

    monkeypatch.setattr(udaseg, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(udaseg, "adapt", adapt)
    monkeypatch.setattr(udaseg, "load", lambda path: path)
    monkeypatch.setattr(udaseg, "evaluate", lambda path, *, options: scores(path.name))
    monkeypatch.setattr(udaseg, "grid", lambda runs, **_: called["grid"].append(list(runs)))
    return called


def test_all_three_are_compared_and_adabn_is_what_rccr_has_to_beat(calls, tmp_path, capsys):
    out = tmp_path / "demo"
    out.mkdir()
    demo(seed=3, out=out, root=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "mIoU │ 20.00 │ 30.00 │ 28.00" in said
    assert "20.0 without adaptation, 30.0 (+10.0)" in said
    assert "28.0 with RCCR too (-2.0 compared with AdaBN)" in said
    summary = json.loads((out / "summary.json").read_text())
    assert [summary[name]["miou"] for name in ("source_only", "adabn", "rccr")] == [0.2, 0.3, 0.28]
    assert (summary["seed"], summary["steps"]) == (3, 500)
    (columns,) = calls["grid"]
    assert columns[0] == out / "adabn" / "checkpoints" / "warm_up"


def test_adabn_and_rccr_differ_in_the_training_alone(calls, tmp_path):
    demo(seed=3, out=tmp_path / "demo", root=tmp_path)
    recipes = [load_recipe(name, overrides=given["overrides"]) for name, given in calls["adapt"]]
    assert [recipe.method.target_statistics for recipe in recipes] == [200, 200]
    adabn, rccr = (
        replace(recipe, name="", expected=None, method=recipes[0].method) for recipe in recipes
    )
    assert adabn == rccr
    assert [given["seed"] for _, given in calls["adapt"]] == [3, 3]
