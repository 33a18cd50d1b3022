"""`info`, `verify` and `report` return what a finished run holds, and print nothing."""

import json
import shutil

import pytest
import torch

from tests.cli.running import udaseg
from tests.make_fixtures import unpack_run
from tests.support.small import shipped
from udaseg.errors import CheckpointError, RecipeError
from udaseg.files import sha256_of
from udaseg.inspection.info import _values_by_owner, _values_text, info, method_text
from udaseg.inspection.record import read_run
from udaseg.inspection.report import report
from udaseg.inspection.verify import verify
from udaseg.runs.run import Run

PACKAGE = "udaseg-nowhere"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run; tests must leave it as it is."""
    return unpack_run("rccr", tmp_path_factory.mktemp("finished") / "rccr")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def unloadable(copy):
    """Return a run whose recipe, also in its checkpoint, needs a package that is not installed."""
    recipe = copy / "recipe.yaml"
    recipe.write_text(f"{recipe.read_text()}packages: [{PACKAGE}]\n")
    path = copy / "checkpoints" / "step-000004.pt"
    payload = torch.load(path, weights_only=True)
    payload["recipe"]["packages"] = [PACKAGE]
    torch.save(payload, path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest |= {"size": path.stat().st_size, "sha256": sha256_of(path)}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return copy


def test_info_has_values_and_the_document_of_the_command(finished, capsys):
    details = info(Run(finished))
    assert capsys.readouterr().out == ""
    assert (details.recipe.steps, details.checkpoint.step, details.kept) == (4, 4, (4,))
    assert details.checkpoint.verified
    assert list(details.checkpoint.values) == ["student", "teacher", "memory of regional"]
    assert details.checkpoint.classes[0] == "road"
    assert details.scores["toyland-target-val"].miou == pytest.approx(0.033, abs=1e-3)
    assert details.status["state"] == "done"
    assert details.cost["step"] == 4
    printed = udaseg("info", finished, "--format", "json", cwd=finished).stdout
    assert printed == json.dumps(details.to_json(), indent=2) + "\n"


def test_info_names_what_self_training_remembers_and_counts_its_values():
    names = {
        "weights.histogram": (13, 150),
        "prior.of_teacher": (13,),
        "student.weight": (1000, 1000),
    }
    state = {name: torch.zeros(shape) for name, shape in names.items()}
    assert _values_by_owner(state) == {
        "confidence of classes": 1950,
        "shares of classes": 13,
        "student": 1_000_000,
    }
    assert [_values_text(count) for count in (1950, 1_000_000)] == ["1,950 values", "1.00 M values"]


def test_info_of_a_file_without_a_manifest_and_of_a_run_without_checkpoints(copy):
    path = copy / "checkpoints" / "step-000004.pt"
    path.with_suffix(".json").unlink()
    assert not info(path).checkpoint.verified
    assert info(path).to_json()["sha256"] == "no manifest, so it cannot be verified"
    path.unlink()
    (copy / "status.json").write_text("{")
    details = info(copy)
    assert details.checkpoint is None
    assert details.to_json()["checkpoint"] == "none yet"
    assert details.to_json()["status"] == "unreadable"
    with pytest.raises(CheckpointError):
        info(copy / "nowhere")


def test_info_of_a_recipe_that_cannot_be_loaded_shows_everything_else(unloadable, capsys):
    details = info(unloadable)
    assert details.recipe is None
    assert f"'{PACKAGE}'" in details.recipe_problem
    shown = details.to_json()
    assert shown["recipe"] == f"cannot be loaded: {details.recipe_problem}"
    assert shown["step"] == "4"
    assert {"weights", "classes", "status", "kept", "scores", "cost"} <= shown.keys()
    assert "source" not in shown
    shutil.rmtree(unloadable / "checkpoints")
    assert "recipe.yaml:" in info(unloadable).to_json()["recipe"]
    assert f"'{PACKAGE}'" in udaseg("info", unloadable, cwd=unloadable).stdout


def test_verify_of_a_whole_run_passes_every_check(finished, capsys):
    verification = verify(str(finished))
    assert capsys.readouterr().out == ""
    assert verification.ok
    assert verification.failed == ()
    names = [check.name for check in verification.checks]
    assert names == ["recipe", "status", "metrics", "checkpoints", "score"]
    assert {check.run for check in verification.checks} == {finished}
    verification.raise_if_failed()


def test_verify_returns_what_failed_and_raises_only_when_asked(copy):
    (copy / "environment.json").unlink()
    (copy / "checkpoints" / "step-000004.pt").write_bytes(b"x")
    verification = verify(copy)
    assert not verification.ok
    failed = [(check.name, check.outcome) for check in verification.failed]
    assert failed == [
        ("checkpoints", "damaged"),
        ("files", "incomplete"),
        ("checkpoints", "incomplete"),
    ]
    with pytest.raises(CheckpointError, match=r"environment\.json: is missing"):
        verification.raise_if_failed()
    with pytest.raises(CheckpointError, match="no such run"):
        verify(copy / "nowhere")


def test_verify_of_several_seeds_checks_the_others_of_a_broken_one(finished, tmp_path):
    (tmp_path / "seeds.json").write_text("{}")
    for name in ("s0", "s1"):
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "s0" / "recipe.yaml").write_text("steps: x\n")
    (tmp_path / "s1" / "train.log").unlink()
    verification = verify(tmp_path)
    failed = [(check.run.name, check.outcome) for check in verification.failed]
    assert failed == [("s0", "unreadable"), ("s1", "incomplete")]
    with pytest.raises(RecipeError):
        verification.raise_if_failed()
    output = udaseg("verify", tmp_path, cwd=tmp_path, expect=2)
    assert "s1: finished, 4 steps" in output.stdout
    assert "s1: train.log: is missing" in output.stderr


def test_verify_names_the_package_that_is_missing(unloadable):
    (check,) = verify(unloadable).checks
    assert (check.name, check.outcome) == ("recipe", "unreadable")
    assert f"'{PACKAGE}'" in check.message
    output = udaseg("verify", unloadable, cwd=unloadable, expect=2)
    assert output.stderr.startswith(f"error: {unloadable}/recipe.yaml:")
    # the recipe of the checkpoint needs it, that of the run does not
    recipe = unloadable / "recipe.yaml"
    recipe.write_text(recipe.read_text().partition("packages:")[0])
    assert [check.outcome for check in verify(unloadable).failed] == ["unreadable", "incomplete"]


def test_report_returns_the_page_of_one_run_or_several(copy, finished, capsys):
    assert report(copy, images=0) == copy / "report.html"
    page = report([str(copy), Run(finished)], baseline=finished, out=copy / "two.html", images=0)
    assert capsys.readouterr().out == ""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "self_training + regional" in text


def test_report_says_no_to_a_recipe_that_cannot_be_loaded(unloadable):
    with pytest.raises(RecipeError, match=PACKAGE):
        report(unloadable, images=0)
    (unloadable / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml"):
        report(unloadable, images=0)


def test_a_page_shows_each_alarm_once_and_the_first_warnings_of_a_long_log(copy):
    alarm = {"alarms": {"one_class": "all is road"}}
    lines = [json.dumps({"step": step, **alarm}) + "\n" for step in (2, 3)]
    (copy / "metrics.jsonl").write_text("".join(lines))
    logged = [f"2026-01-02 03:04:05 WARNING udaseg.x: warning {n}\n" for n in range(30)]
    (copy / "train.log").write_text("".join(logged * 2))
    warnings = read_run(copy, "run", None).warnings
    assert warnings[0] == "step 2: all is road (raised 2 times)"
    assert warnings[-2:] == ["warning 19", "and 10 more warnings in train.log"]


def test_a_method_names_its_masks_and_its_warm_up():
    words = ["steps=10", "method.warm_up=0.5", "method.masking={kind: block}"]
    said = method_text(shipped("toyland/rccr", [*words, "method.target_statistics=20"]))
    terms = "self_training + regional + masking + target statistics"
    assert said == f"{terms}, after 5 steps on the source alone"
