"""`sweep` and `table`: every setting and seed is an ordinary run, and the scores are one table."""

import csv
import io
import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.support.toy import TINY
from udaseg.errors import DivergedError
from udaseg.recipe.load import load

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [*TINY, "machine.workers=0", "machine.preview_every=0", "machine.loggers=[]"]
LR = "optimizer.lr=1e-3,1e-2"


def words(root, out, *more, steps=1):
    return [
        "sweep",
        "--root",
        root,
        "--out",
        out,
        "--steps",
        steps,
        "--deterministic",
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def swept(root, tmp_path_factory):
    """Return the folder of two learning rates and two seeds, and the command's output."""
    out = tmp_path_factory.mktemp("swept") / "out"
    output = udaseg(*words(root, out, "toyland/source_only", LR, "--seeds", "0,1"), cwd=out.parent)
    return out, output


def test_settings_of_an_earlier_call_stay_in_the_table(root, swept, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(swept[0], out)
    recipe = ("toyland/source_only", "optimizer.lr=1e-3,2e-3", "--seeds", "0")
    output = udaseg(*words(root, out, *recipe), cwd=tmp_path)
    names = [each["folder"] for each in json.loads((out / "sweep.json").read_text())["settings"]]
    assert names == ["lr=1e-3", "lr=2e-3", "lr=1e-2"]
    assert "lr=1e-2" in output.stdout
    assert "lr=1e-2" in (out / "table.md").read_text()


def miou(run):
    return json.loads((run / "eval/toyland-target-val/scores.json").read_text())["means"]["mIoU"]


def test_each_setting_has_a_folder_of_seeds_whose_runs_are_the_single_ones(root, swept, tmp_path):
    out, _ = swept
    assert sorted(path.name for path in out.iterdir()) == [
        *("curve.svg", "lr=1e-2", "lr=1e-3", "sweep.json", "table.csv", "table.md"),
    ]
    assert load(out / "lr=1e-2/s1/recipe.yaml").optimizer.lr == 1e-2
    alone = tmp_path / "alone"
    common = ["train", "toyland/source_only", "--root", root, "--steps", 1, "--deterministic"]
    udaseg(*common, *SMALL, "optimizer.lr=1e-2", "--seed", 1, "--out", alone, cwd=tmp_path)
    assert_same(tensors(out / "lr=1e-2/s1"), tensors(alone))


def test_the_table_has_the_scores_of_the_runs(swept):
    out, output = swept
    rows = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    means = {row["method"]: row for row in rows if row["score"] == "mIoU"}
    assert list(means) == ["lr=1e-3", "lr=1e-2"]
    for name, row in means.items():
        values = [100 * miou(out / name / seed) for seed in ("s0", "s1")]
        assert row["mean_percent"] == f"{statistics.fmean(values):.2f}"
        assert row["spread_percent"] == f"{statistics.stdev(values):.2f}"
        assert row["seeds"] == "2"
        assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in output.stdout
    assert means["lr=1e-3"]["low_points"] == ""
    assert means["lr=1e-2"]["low_points"] != ""
    assert "points above lr=1e-3" in output.stdout
    assert "optimizer.lr" in (out / "curve.svg").read_text()
    settings = json.loads((out / "sweep.json").read_text())["settings"]
    assert [setting["means"]["mIoU"]["seeds"] for setting in settings] == [2, 2]


def test_the_same_command_again_trains_what_is_left(root, swept, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(swept[0], out)
    shutil.rmtree(out / "lr=1e-2/s1")
    (out / "table.md").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/s*/checkpoints/*.pt")}
    recipe = ("toyland/source_only", LR, "--seeds", "0,1")
    again = udaseg(*words(root, out, *recipe), cwd=tmp_path)
    assert again.stderr.count("finished already") == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(tensors(out / "lr=1e-2/s1"), tensors(swept[0] / "lr=1e-2/s1"))
    assert (out / "table.md").read_text() == (swept[0] / "table.md").read_text()
    other = udaseg(*words(root, out, *recipe, steps=2), cwd=tmp_path, expect=2)
    assert "steps was 1 and is now 2" in other.stderr


def test_a_run_of_another_recipe_is_refused_before_the_first_run(root, swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "out")
    shutil.rmtree(out / "lr=1e-3")
    record = (out / "sweep.json").read_bytes()
    again = words(root, out, "toyland/source_only", LR, "--seeds", "0,1", steps=2)
    output = udaseg(*again, cwd=tmp_path, expect=2)
    assert "lr=1e-2/s0: is finished, but with other settings: " in output.stderr
    assert not (out / "lr=1e-3").exists()
    assert (out / "sweep.json").read_bytes() == record


def test_table_reads_sweeps_seeds_and_runs_and_writes_each_format(swept, tmp_path):
    out, _ = swept
    markdown = udaseg("table", out, "--format", "md", "--baseline", out / "lr=1e-3", cwd=tmp_path)
    assert markdown.stdout.strip() == (out / "table.md").read_text().strip()
    shown = udaseg("table", out / "lr=1e-3", out / "lr=1e-2", cwd=tmp_path).stdout
    assert "source_only (lr=1e-2)" in " ".join(shown.split())
    latex = udaseg("table", out, "--format", "latex", cwd=tmp_path).stdout
    assert latex.count("\\\\\n") == 3
    missing = udaseg("table", out, "--scores", "x", cwd=tmp_path, expect=3)
    assert "too few runs with scores of x" in missing.stderr
    refused = udaseg("table", out / "table.md", cwd=tmp_path, expect=3)
    assert "is not a run folder, nor one of seeds" in refused.stderr


def test_verify_checks_all_runs_of_a_sweep(swept, tmp_path):
    assert udaseg("verify", swept[0], cwd=tmp_path).stdout.count("finished, 1 step") == 4


def test_recipes_methods_and_single_changes_are_settings(root, tmp_path, monkeypatch):
    monkeypatch.setattr("udaseg.experiments.sweep.run_seeds", lambda *_, **__: None)
    change = "method.regional.negative_sampling=false"
    dry = ["--dry-run", "--each", change, "method.regional.temperature=0.1,1", "toyland/rccr"]
    lines = udaseg(*words(root, tmp_path / "x", *dry), cwd=tmp_path).stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "temperature=0.1",
        "temperature=1",
        "temperature=0.1 negative_sampling=false",
        "temperature=1 negative_sampling=false",
    ]
    pair = ["--source", "toyland", "--target", "toyland-target", "source_only", "dacs", "--dry-run"]
    lines = udaseg(*words(root, tmp_path / "x", *pair), cwd=tmp_path).stdout.splitlines()
    assert lines == [f"{name}: {tmp_path / 'x' / name}" for name in ("source_only", "dacs")]
    networks = ["--network", "light", "--network", "standard"]
    lines = udaseg(*words(root, tmp_path / "x", *pair, *networks), cwd=tmp_path).stdout.splitlines()
    names = ["source_only-light", "source_only-standard", "dacs-light", "dacs-standard"]
    assert [line.partition(": ")[0] for line in lines] == names
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_others_theirs(root, tmp_path, monkeypatch):
    from udaseg.training.stages import Runner

    real = Runner.run

    def diverging(runner):
        if runner.context.recipe.optimizer.lr == 1e-2:
            raise DivergedError("step 1: not finite")
        return real(runner)

    monkeypatch.setattr(Runner, "run", diverging)
    out = tmp_path / "out"
    output = udaseg(*words(root, out, "toyland/source_only", LR), cwd=tmp_path, expect=4)
    assert "1 run did not finish: lr=1e-2, seed 0: step 1: not finite" in output.stderr
    assert (out / "table.md").read_text().startswith("| method | road")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["steps=1,2"], "Missing argument 'RECIPE'"),
        (["toyland/rccr", "optimizer.lr=1e-3,0"], "optimizer.lr: must be above 0"),
        (["toyland/rccr", "optimizer.lr=1,1"], "optimizer.lr: give one or more different values"),
        (["toyland/rccr", "--each", "optimizer"], "give each key once, as KEY=VALUE"),
        (["toyland/rccr", "--seeds", "0,0"], "different whole numbers"),
        (["toyland/rcr"], "did you mean 'toyland/rccr'"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused_before_any_run(root, tmp_path, more, expected):
    output = udaseg(*words(root, tmp_path / "x", *more), cwd=tmp_path, expect=2)
    assert expected in output.stderr
    assert not (tmp_path / "x").exists()


def test_the_folder_of_other_runs_is_refused(root, swept, tmp_path):
    out = swept[0] / "lr=1e-3"
    output = udaseg(*words(root, out, "toyland/source_only", LR), cwd=tmp_path, expect=2)
    assert "holds a run, or several of another kind; use another --out" in output.stderr


def test_every_sweep_of_the_page_is_one_that_the_command_accepts(tmp_path, monkeypatch):
    monkeypatch.setattr("udaseg.experiments.sweep.run_seeds", lambda *_, **__: None)
    page = (REPOSITORY / "docs" / "ablations.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    commands = [line for line in blocks.replace("\\\n", "").splitlines() if " sweep " in line]
    assert len(commands) >= 4
    for command in commands:
        found = udaseg(*shlex.split(command, comments=True)[1:], "--dry-run", cwd=tmp_path)
        assert len(found.stdout.splitlines()) > 1
