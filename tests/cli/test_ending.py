"""Runs that end by estimating the target's batch-norm statistics, through the command line."""

import shutil

import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from tests.support.toy import TINY
from udaseg.errors import DataError
from udaseg.recipe.load import load
from udaseg.runs.best import warm_up_folder
from udaseg.training import stage_data


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Return a finished AdaBN run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    adapt(root, out, method="adabn")
    return out


def test_weights_are_source_only_s_and_statistics_the_target_s(root, whole, tmp_path):
    words = ("--root", root, "--out", tmp_path / "plain", "--steps", 3)
    udaseg("train", "toyland/source_only", *words, *TINY, cwd=tmp_path)
    plain, adapted = tensors(tmp_path / "plain"), tensors(whole)
    assert plain.keys() == adapted.keys()
    different = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert different
    assert all(name.rpartition(".")[2].startswith(("running", "num_b")) for name in different)
    before = torch.load(warm_up_folder(whole) / "step-000003.pt", weights_only=True)
    assert_same(before["objective"], {name: plain[name] for name in before["objective"]})


def test_scores_of_the_network_before_the_statistics_have_a_name_of_their_own(
    root, whole, tmp_path
):
    for checkpoint in ("warm_up", "step-000003.pt"):  # both of the same step
        path = whole / "checkpoints" / checkpoint
        udaseg("eval", path, "--root", root, cwd=tmp_path)
    names = {path.name for path in (whole / "eval").iterdir()}
    assert names >= {"toyland-target-val+warm_up", "toyland-target-val+step-000003"}


def test_a_finished_run_that_is_resumed_ends_the_same(root, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(whole))


def test_a_run_that_fails_in_the_pass_keeps_its_steps_and_ends_the_same(
    root, whole, tmp_path, monkeypatch
):
    out = tmp_path / "run"

    def gone(*_, **__):
        raise DataError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(stage_data, "adapt_batch_norms", gone)
        assert "the disk is gone" in adapt(root, out, method="adabn", expect=3).stderr
    assert (out / "checkpoints" / "step-000003.pt").is_file()
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(whole))


def test_self_training_can_end_so_too_and_the_recipe_says_it(root, tmp_path):
    out = tmp_path / "run"
    adapt(root, out, "method.target_statistics=4", method="dacs", steps=2)
    assert load(out / "recipe.yaml").method.target_statistics == 4
    values = tensors(out)
    student = {name for name in values if name.startswith("student.") and "running" in name}
    assert student
    batches = {int(v) for name, v in values.items() if name.endswith("num_batches_tracked")}
    assert batches == {2}  # four images in batches of two, for student and teacher


def test_train_refuses_what_looks_at_target_images(root, tmp_path):
    output = udaseg("train", "toyland/adabn", "--root", root, cwd=tmp_path, expect=2)
    assert "the recipe uses target images; run it with `udaseg adapt`" in output.stderr
