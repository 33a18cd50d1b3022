"""A staged run through the command line: one command, resumed within and between stages."""

import gc
import json
import shutil

import cv2
import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from tests.support.toy import toy_root
from udaseg.data.open import open_dataset

OFTEN = ["machine.checkpoint_every=1", "machine.keep_checkpoints=99", "machine.log_every=1"]
STEPS = 10  # 4 of warm-up, 4 of contrast, 2 of self-distillation


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Return a finished SPCL run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    adapt(root, out, *OFTEN, method="spcl", steps=STEPS)
    return out


def _cut(run, step):
    """Delete everything that a run saved after `step`, as if it had been killed then."""
    for folder in (run / "checkpoints", *run.glob("stages/*/checkpoint")):
        for path in folder.glob("step-*"):
            if int(path.stem[5:]) > step:
                path.unlink()
    for number, begin in ((2, 4), (3, 8)):
        if step < begin:
            for path in run.glob(f"stages/{number}-*"):
                shutil.rmtree(path)


def test_one_command_runs_all_stages_and_says_which_one_it_is_in(root, whole, tmp_path):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    stages = [line["stage"] for line in lines]
    assert stages == ["warm_up"] * 4 + ["contrast"] * 4 + ["self_distillation"] * 2
    assert "discriminator" in lines[0]["losses"]
    assert {"source", "prototypes"} <= set(lines[4]["losses"])
    assert set(lines[8]["losses"]) == {"total", "target"}
    assert lines[8]["lr"]["backbone"] == pytest.approx(2e-3 / 21)  # doubled rate, new warm-up
    output = udaseg("eval", whole, "--root", root, "--format", "csv", cwd=tmp_path)
    assert output.stdout.startswith("class,iou")
    assert "staged" in udaseg("info", whole, cwd=tmp_path).stdout


def test_pseudo_labels_are_pngs_with_rejected_pixels_and_their_thresholds_are_told(root, whole):
    target = open_dataset("toyland-target", root=root)
    for stage in ("2-contrast", "3-self_distillation"):
        folder = whole / "stages" / stage
        record = json.loads((folder / "pseudo_labels.json").read_text())
        assert record["images"] == len(target.split("train"))
        kept = 0
        for sample in target.split("train"):
            path = folder / "pseudo_labels" / f"{sample.image}.png"
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert labels.shape == (64, 128)
            assert set(np.unique(labels)) <= {*range(13), 255}
            kept += int((labels != 255).sum())
        classes = record["classes"].values()
        assert kept == sum(entry["kept_pixels"] for entry in classes)
        assert all(0 <= entry["threshold"] <= 0.9 for entry in classes)
        # pixels at or above the median: at least half
        assert kept >= 0.5 * sum(entry["predicted_pixels"] for entry in classes)


@pytest.mark.parametrize(
    "step", [4, 9, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 6, 8))]
)
@pytest.mark.slow
def test_a_run_cut_off_in_any_stage_or_between_two_ends_where_the_whole_one_ends(
    root, whole, tmp_path, step
):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    _cut(out, step)
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(whole))
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_pseudo_labels_that_are_lost_or_changed_are_made_again_exactly(root, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    _cut(out, 6)
    pngs = sorted((out / "stages" / "2-contrast" / "pseudo_labels").rglob("*.png"))
    pngs[0].unlink()
    pngs[1].write_bytes(pngs[2].read_bytes())
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(whole))


def test_a_stage_whose_start_is_gone_is_refused_with_what_to_do(root, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    _cut(out, 6)
    shutil.rmtree(out / "stages" / "1-warm_up")
    output = udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path, expect=3)
    assert "warm_up is missing" in output.stderr


@pytest.mark.slow
def test_poisoned_target_labels_leave_all_stages_bit_identical(whole, tmp_path):
    mine = toy_root(tmp_path / "data")
    rng = np.random.default_rng(0)
    labels = sorted((mine / "prepared" / "toyland-target").rglob("*.png"))
    assert labels
    for path in labels:
        shape = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape
        cv2.imwrite(str(path), rng.integers(0, 13, shape, dtype=np.uint8))
    out = tmp_path / "run"
    adapt(mine, out, "validation.data=null", *OFTEN, method="spcl", steps=STEPS)
    assert_same(tensors(out), tensors(whole))


def test_info_names_the_stages(whole, tmp_path):
    output = " ".join(udaseg("info", whole, cwd=tmp_path).stdout.split())
    assert "warm_up (adversarial) to 4, contrast (prototype_alignment) to 8" in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["steps=2"], "leaves no step"),
        (["method.stages=[]"], "method.stages: must have at least 1 item, got 0"),
        (
            ["method.stages=[{name: a, share: 0.5, lr_mult: 1, schedule_stop: 1, "
             "objective: {kind: source_only}}]"],
            "add up to 1",
        ),
        (
            ["method.stages=[{name: a, share: 1, lr_mult: 1, schedule_stop: 1, "
             "objective: {kind: self_distillation}}]"],
            "must not come first",
        ),
        (
            ["method.stages=[{name: a b, share: 1, lr_mult: 0, schedule_stop: 2, "
             "objective: {kind: source_only}, pseudo_labels: {quantile: 2, cap: 0.9}}]"],
            "pseudo_labels.quantile: must be in [0, 1]",
        ),
        (
            ["method.stages=[{name: a, share: 1, lr_mult: 1, schedule_stop: 1, "
             "objective: {kind: source_only}, pseudo_labels: {quantile: 0.5, cap: 0.9}}]"],
            "uses no pseudo-labels",
        ),
        (
            ["method.stages=[{name: a, share: 1, lr_mult: 1, schedule_stop: 1, "
             "source_jitter: {strength: 0.5, hue: 0.6}, objective: {kind: source_only}}]"],
            "source_jitter.hue: must be in [0, 0.5]",
        ),
        (
            ["method.stages=[{name: a, share: 1, lr_mult: 1, schedule_stop: 1, objective: "
             "{kind: source_only}, target: {resize: null, crop: [64, 64], scale: [1, 1], "
             "flip: true, batch: 2}}]"],
            "source_only uses no target images",
        ),
        (
            ["method.stages=[{name: a, share: 0.5, lr_mult: 1, schedule_stop: 1, objective: "
             "{kind: source_only}}, {name: b, share: 0.5, lr_mult: 1, schedule_stop: 1, objective: "
             "{kind: self_distillation}, pseudo_labels: {quantile: 0.5, cap: 0.9}, "
             "source_jitter: {strength: 0.5, hue: 0.1}, source_sampling: class_balanced, "
             "target: {resize: null, crop: [8, 64], scale: [1, 1], flip: true, batch: 2}}]"],
            "self_distillation uses no source images",
        ),
        (
            ["method.stages=[{name: a, share: 1, lr_mult: 1, schedule_stop: 1, "
             "target_jitter: {strength: 0.5, hue: 0.2}, objective: {kind: source_only}}]"],
            "target_jitter: must be left out: source_only uses no target images",
        ),
        (["source.crop=[24, 64]", "target.crop=[24, 64]"], "one cell of the discriminator"),
    ],
)  # fmt: skip
def test_stages_that_cannot_run_are_refused(root, tmp_path, words, expected):
    output = udaseg(
        "adapt", "toyland/spcl", "--root", root, *words, "--dry-run", cwd=tmp_path, expect=2
    )
    assert expected in output.stderr


def test_source_only_can_take_the_place_of_the_adversarial_warm_up(root, tmp_path):
    recipe = udaseg("recipes", "cat", "toyland/spcl", cwd=tmp_path).stdout
    start, end = (
        recipe.index("      objective:\n        kind: adversarial"),
        recipe.index("    - name: contrast"),
    )
    text = recipe[:start] + "      objective:\n        kind: source_only\n" + recipe[end:]
    (tmp_path / "my.yaml").write_text(text)
    from tests.support.toy import TINY

    out = tmp_path / "run"
    udaseg("adapt", "my.yaml", "--root", root, "--out", out, "--steps", 5, *TINY, cwd=tmp_path)
    assert json.loads((out / "status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_stage_begins_when_the_one_before_is_freed(root, tmp_path, monkeypatch):
    from udaseg.training import stages as stages_module
    from udaseg.training.setup import TrainingSetup

    real, alive = stages_module.open_stage, []

    def counted(*args, **words):
        gc.collect()
        alive.append(sum(type(thing) is TrainingSetup for thing in gc.get_objects()))
        return real(*args, **words)

    monkeypatch.setattr(stages_module, "open_stage", counted)
    adapt(root, tmp_path / "run", method="spcl", steps=5)
    assert alive == [0, 0]
