"""At its end, a run is compared with its network before the adaptation."""

import logging

import pytest

import udaseg
from tests.support.torchrun import adapt_words, torchrun
from tests.support.toy import SMALL
from udaseg.runs.worth import read_worth
from udaseg.training.callbacks import worth as of_run
from udaseg.training.train import TrainOptions

TINY = {
    **SMALL,
    "model.backbone": "timm:test_efficientnet",
    "model.weights": "random",
    "model.head_channels": 16,
    "machine.checkpoint_every": 0,
    "validation.data": None,
}


def adapted(root, out, recipe="dacs", **method):
    changes = {f"method.{key}": value for key, value in method.items()}
    return udaseg.adapt(
        recipe,
        source="toyland",
        target="toyland-target",
        steps=4,
        overrides={**TINY, **changes},
        out=out,
        options=TrainOptions(root=root),
    )


def test_the_warm_network_and_the_adapted_one_are_compared_as_select_does(root, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "udaseg"):
        run = adapted(root, tmp_path / "run", warm_up=0.5)
    assert "select run 2 1/1 images" in caplog.text
    assert "another command also writes" not in caplog.text
    stored = run.worth
    assert (stored.baseline.step, stored.adapted.step) == (2, 4)
    assert stored.adapted.sha256 == udaseg.load(run).sha256
    # 4 steps of 2 images: one image is compared, not one in 25
    assert stored.target == {"data": "toyland-target", "split": "train", "images": 1}
    assert (stored.source["data"], stored.source["split"]) == ("toyland", "val")
    again = udaseg.worth_it(run, options=udaseg.WorthOptions(images=1, root=root))
    assert (again.adapted, again.baseline) == (stored.adapted, stored.baseline)
    for row, other in zip(again.criteria, stored.criteria, strict=True):
        assert (row.adapted, row.baseline) == pytest.approx((other.adapted, other.baseline))


@pytest.mark.slow
@pytest.mark.parametrize("warm_up", [0, 1])
def test_without_anything_before_or_after_nothing_is_compared(root, tmp_path, warm_up):
    assert adapted(root, tmp_path / "run", warm_up=warm_up).worth is None


@pytest.mark.slow
def test_the_first_of_two_processes_compares_alone(root, tmp_path):
    run = tmp_path / "run"
    out, _ = torchrun(*adapt_words(root, run, "method.warm_up=0.5", method="dacs"), cwd=tmp_path)
    assert out.count("Was the adaptation worth it?") == 1
    stored = read_worth(run)
    again = udaseg.worth_it(run, options=udaseg.WorthOptions(images=1, root=root))
    for row, other in zip(again.criteria, stored.criteria, strict=True):
        assert (row.adapted, row.baseline) == pytest.approx((other.adapted, other.baseline))


@pytest.mark.slow
def test_statistics_of_the_target_are_an_adaptation(root, tmp_path):
    worth = adapted(root, tmp_path / "run", "adabn").worth
    assert worth.baseline.step == worth.adapted.step == 4
    assert worth.baseline.sha256 != worth.adapted.sha256
    assert {row.prefers for row in worth.criteria} != {None}


def test_a_comparison_that_fails_does_not_end_the_run(root, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(of_run, "compare_networks", full)
    run = adapted(root, tmp_path / "run", warm_up=0.5)
    assert run.finished
    assert read_worth(run.path) is None
    assert f"(CUDA error: out of memory); do so with `udaseg select --worth-it {run.path}`" in (
        caplog.text
    )
