"""`--seeds` and `verify`: runs of one recipe, their statistics, and checks of finished runs."""

import json
import math
import shutil
import statistics

import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import assert_same, tensors, without_checkpoints
from tests.support.damage import flips
from tests.support.toy import TINY
from udaseg.errors import DivergedError, RecipeError, UsageError
from udaseg.experiments.seeds import SeedStatistics, run_seeds
from udaseg.inspection.verify import verify as verified
from udaseg.recipe.load import load
from udaseg.recipe.request import Overrides, requested_recipe
from udaseg.recipe.stages import recipe_digest

RECIPE = "toyland/dacs"


def words(root, out, *more):
    return [
        *("adapt", RECIPE, "--root", root, "--out", out, "--steps", 2, "--deterministic"),
        *(*TINY, "machine.log_every=1", *more),
    ]


@pytest.fixture(scope="module")
def three(root, tmp_path_factory):
    """Return a folder of runs with three seeds, and the command's output."""
    out = tmp_path_factory.mktemp("three") / "seeds"
    output = udaseg(*words(root, out, "--seeds", "0,1,2"), cwd=out.parent)
    return out, output


def test_a_seed_that_lost_its_scores_is_named(root, three, tmp_path):
    out = tmp_path / "seeds"
    shutil.copytree(three[0], out)
    shutil.rmtree(out / "s1/eval")
    output = udaseg(*words(root, out, "--seeds", "0,1,2"), cwd=tmp_path)
    assert "s1 has no scores, so mean and spread leave it out; `udaseg eval" in output.stderr
    assert "over 2 seeds" in output.stdout


def test_each_seed_has_a_run_of_its_own_that_is_the_single_one(root, three, tmp_path):
    out, _ = three
    assert sorted(path.name for path in out.iterdir()) == ["s0", "s1", "s2", "seeds.json"]
    alone = tmp_path / "alone"
    udaseg(*words(root, alone, "--seed", 1), cwd=tmp_path)
    assert_same(tensors(out / "s1"), tensors(alone))
    assert load(out / "s1" / "recipe.yaml").seed == 1
    assert any(
        not torch.equal(one, tensors(out / "s1")[name]) for name, one in tensors(out / "s0").items()
    )


def test_mean_and_spread_are_those_of_the_scores(three):
    out, output = three
    summary = json.loads((out / "seeds.json").read_text())
    runs = [
        json.loads((out / f"s{n}/eval/toyland-target-val/scores.json").read_text())
        for n in range(3)
    ]
    assert summary["seeds"] == [0, 1, 2]
    assert summary["finished"] == {"0": "s0", "1": "s1", "2": "s2"}
    for name in runs[0]["means"]:
        values = [run["means"][name] for run in runs]
        assert summary["means"][name]["mean"] == pytest.approx(statistics.fmean(values))
        assert summary["means"][name]["spread"] == pytest.approx(statistics.stdev(values))
        assert (summary["means"][name]["least"], summary["means"][name]["most"]) == (
            min(values),
            max(values),
        )
        assert f"{100 * statistics.fmean(values):.2f}" in output.stdout
    for number, row in enumerate(runs[0]["classes"]):
        values = [run["classes"][number]["iou"] for run in runs]
        known = [value for value in values if value is not None]
        assert summary["classes"][row["name"]]["seeds"] == len(known)
        assert row["name"] in output.stdout


def test_spread_leaves_out_what_was_not_measured_and_needs_two():
    assert SeedStatistics((0.1, math.nan, 0.3)).mean == pytest.approx(0.2)
    assert SeedStatistics((0.1, math.nan)).spread is None
    assert SeedStatistics((math.nan,)).mean is None
    assert SeedStatistics(()).to_json()["seeds"] == 0


@pytest.mark.slow
def test_the_same_command_again_goes_on_with_what_is_left(root, three, tmp_path):
    out = tmp_path / "seeds"
    shutil.copytree(three[0], out)
    # the first seed is finished, the second stopped after one step, the third never started
    for kind in ("pt", "json"):
        (out / f"s1/checkpoints/step-000002.{kind}").unlink()
    (out / "s1/status.json").write_text('{"state": "running", "step": 1}')
    shutil.rmtree(out / "s2")
    before = (out / "s0/checkpoints/step-000002.pt").stat().st_mtime_ns
    output = udaseg(*words(root, out, "--seeds", "0,1,2"), cwd=tmp_path)
    assert "seed 0: finished already" in output.stderr
    assert "seed 1: resumes in" in output.stderr
    assert "seed 2: starts in" in output.stderr
    assert (out / "s0/checkpoints/step-000002.pt").stat().st_mtime_ns == before
    for name in ("s1", "s2"):
        assert_same(tensors(out / name), tensors(three[0] / name))
    again = udaseg(*words(root, out, "optimizer.lr=1e-5", "--seeds", "0,1"), cwd=tmp_path, expect=2)
    assert "optimizer.lr was 0.001 and is now 1e-05" in again.stderr


@pytest.mark.slow
def test_a_seed_that_was_stopped_before_its_first_checkpoint_begins_with_the_same_weights(
    root, three, tmp_path
):
    out = tmp_path / "seeds"
    every = words(root, out, "--seeds", "0,1", "--init", three[0] / "s2", "validation.data=null")
    udaseg(*every, cwd=tmp_path)
    expected = tensors(out / "s1")
    without_checkpoints(out / "s1")
    assert "seed 1: resumes in" in udaseg(*every, cwd=tmp_path).stderr
    assert_same(tensors(out / "s1"), expected)


def test_a_seed_that_diverges_leaves_the_others_theirs(root, tmp_path, monkeypatch):
    from udaseg.training.stages import Runner

    real = Runner.run

    def diverging(runner):
        if runner.context.recipe.seed == 0:
            raise DivergedError("step 1: not finite\nmore of it")
        real(runner)

    monkeypatch.setattr(Runner, "run", diverging)
    out = tmp_path / "seeds"
    output = udaseg(*words(root, out, "--seeds", "0,3"), cwd=tmp_path, expect=4)
    assert "1 of 2 seeds did not finish: seed 0: step 1: not finite" in output.stderr
    summary = json.loads((out / "seeds.json").read_text())
    assert summary["finished"] == {"3": "s3"}
    assert list(summary["failed"]) == ["0"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seeds", "0,0"], "different whole numbers"),
        (["--seeds", "0;1"], "different whole numbers"),
        (["--seeds", "0,1", "--seed", "3"], "cannot be combined with --seed"),
        (["--seeds", "0,1", "seed=3"], "cannot be combined with --seed or seed=N"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(root, tmp_path, more, expected):
    assert expected in udaseg(*words(root, tmp_path / "x", *more), cwd=tmp_path, expect=2).stderr


def test_an_override_of_the_seed_is_refused_in_python_too(root, tmp_path):
    with pytest.raises(UsageError, match="seed: give it with the other seeds, not as an override"):
        run_seeds([0, 1], RECIPE, overrides={"seed": 3}, out=tmp_path / "x")


def test_several_processes_and_the_folder_of_one_run_are_refused(
    root, three, tmp_path, monkeypatch
):
    into = udaseg(*words(root, three[0] / "s0", "--seeds", "0,1"), cwd=tmp_path, expect=2)
    assert "holds a run, or several of another kind" in into.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    many = udaseg(*words(root, tmp_path / "x", "--seeds", "0,1"), cwd=tmp_path, expect=2)
    assert "torchrun once for each" in many.stderr


@pytest.fixture
def one(three, tmp_path):
    shutil.copytree(three[0] / "s0", tmp_path / "run")
    return tmp_path / "run"


def verify(path, expect=0):
    return udaseg("verify", path, cwd=path.parent, expect=expect)


def _miou(run):
    return 100 * json.loads((run / "status.json").read_text())["miou"]


def _expecting(run, low, high):
    path = run / "recipe.yaml"
    text = path.read_text().replace("expected: null", f"expected: {{miou: [{low}, {high}]}}")
    path.write_text(text)


def test_a_finished_run_is_whole_and_its_digest_is_told(one, three):
    output = verify(one).stdout
    assert "finished, 2 steps" in output
    assert "the digests of 1 checkpoint match" in output
    assert recipe_digest(load(one / "recipe.yaml"))[:12] in output
    assert verify(three[0]).stdout.count("finished") == 3


def test_a_score_is_held_against_what_the_recipe_expects(one):
    score = _miou(one)
    _expecting(one, max(0.0, score - 1), score + 1)
    assert "expected" in verify(one).stdout
    text = (one / "recipe.yaml").read_text()
    (one / "recipe.yaml").write_text(text.replace(text.split("expected:")[1], ""))
    _set = text.split("expected:")[0] + "expected: {miou: [99.0, 100.0]}\n"
    (one / "recipe.yaml").write_text(_set)
    output = verify(one, expect=7)
    assert f"mIoU {score:.2f}, expected 99 to 100" in output.stderr


@pytest.mark.parametrize(
    ("harm", "code", "expected"),
    [
        ("flip", 3, "SHA-256"),
        ("cut", 3, "damaged"),
        ("no manifest", 3, "no manifest"),
        ("no checkpoint", 3, "is missing, but its manifest exists"),
        ("no metrics", 3, "metrics.jsonl: is missing"),
        ("cut metrics", 3, "metrics.jsonl"),
        ("a step twice", 3, "metrics.jsonl: steps are not in increasing order"),
        ("no environment", 3, "environment.json: is missing"),
        ("unfinished", 3, "not finished: interrupted, step 1 of 2"),
        ("recipe edited", 3, "another recipe"),
        ("recipe broken", 2, "steps"),
        ("no recipe", 3, "is not a run folder"),
        ("no scores", 3, "no scores.json"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(one, harm, code, expected):
    checkpoint, recipe = one / "checkpoints/step-000002.pt", one / "recipe.yaml"
    metrics, status = one / "metrics.jsonl", one / "status.json"
    harms = {
        "flip": lambda: checkpoint.write_bytes(flips(checkpoint.read_bytes(), 1, 0)[0]),
        "cut": lambda: checkpoint.write_bytes(checkpoint.read_bytes()[:-1]),
        "no manifest": checkpoint.with_suffix(".json").unlink,
        "no checkpoint": checkpoint.unlink,
        "no metrics": metrics.unlink,
        "cut metrics": lambda: metrics.write_text(metrics.read_text()[:-9]),
        "a step twice": lambda: metrics.write_text(
            metrics.read_text() + metrics.read_text().splitlines()[-1] + "\n"
        ),
        "no environment": (one / "environment.json").unlink,
        "unfinished": lambda: status.write_text('{"state": "interrupted", "step": 1}'),
        "recipe edited": lambda: recipe.write_text(
            recipe.read_text().replace("seed: 0", "seed: 7")
        ),
        "recipe broken": lambda: recipe.write_text(
            recipe.read_text().replace("steps: 2", "steps: x")
        ),
        "no recipe": recipe.unlink,
        "no scores": (one / "eval/toyland-target-val/scores.json").unlink,
    }
    harms[harm]()
    assert expected in verify(one, expect=code).stderr


@pytest.mark.parametrize(("processes", "batch", "code"), [(2, 1, 0), (2, 2, 3), (1, 1, 3)])
def test_checkpoints_of_other_processes_are_the_runs_if_the_step_is_as_large(
    one, processes, batch, code
):
    """Edit a run of 2 + 2 images a step as if several processes had resumed it."""
    for name, old, new in (
        ("recipe.yaml", "source: 2\n", f"source: {batch}\n"),
        ("recipe.yaml", "target: 2\n", f"target: {batch}\n"),
        ("environment.json", '"processes": 1', f'"processes": {processes}'),
    ):
        text = (one / name).read_text()
        assert text.count(old) == 1
        (one / name).write_text(text.replace(old, new))
    output = verify(one, expect=code)
    assert ("another recipe" in output.stderr) == bool(code)
    (one / "environment.json").unlink()
    assert ("another recipe" in verify(one, expect=3).stderr) == (batch == 1)


def test_a_damaged_run_among_the_seeds_is_named(three, tmp_path):
    out = tmp_path / "seeds"
    shutil.copytree(three[0], out)
    (out / "s1/checkpoints/step-000002.pt").write_bytes(b"no checkpoint")
    output = verify(out, expect=3)
    assert "s1" in output.stderr
    assert {check.run.name for check in verified(out).failed} == {"s1"}
    assert verified(out / "s0").ok


def test_what_is_expected_falls_with_the_numbers_that_it_was_found_with(three, tmp_path):
    path = tmp_path / "mine.yaml"
    text = (three[0] / "s0/recipe.yaml").read_text()
    path.write_text(text.replace("expected: null", "expected: {miou: [1, 99]}"))
    same = [str(path), "machine.log_every=7"]

    def expects(*more, seed=5):
        return requested_recipe([*same, *more], Overrides(seed=seed), "rccr")[0].expected

    assert expects().miou == (1.0, 99.0)
    assert expects("steps=3") is None
    assert expects("steps=3", "expected.miou=[2, 98]").miou == (2.0, 98.0)
    with pytest.raises(RecipeError, match="LOWEST"):
        expects("expected.miou=[98, 2]")


def test_deterministic_holds_for_the_run_and_not_for_longer(root, tmp_path, monkeypatch):
    from udaseg.training.stages import Runner

    seen = []
    real = Runner.run

    def watching(runner):
        seen.append(torch.are_deterministic_algorithms_enabled())
        real(runner)

    monkeypatch.setattr(Runner, "run", watching)
    udaseg(*words(root, tmp_path / "run"), cwd=tmp_path)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
