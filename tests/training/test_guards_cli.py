"""What the command line shows for bad steps, damaged state and out-of-memory errors."""

import json
from dataclasses import replace

import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from tests.support.toy import TINY
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.recipe.load import load
from udaseg.training import step
from udaseg.training.callbacks import collapse

OFTEN = ["validation.data=null", "machine.log_every=1", "machine.checkpoint_every=1"]
QUIET = ["validation.data=null", "machine.log_every=2", "machine.checkpoint_every=2"]


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that makes the loss of the given steps (from 0) NaN, once each."""

    def at(*steps, error=None, images=0):
        left, real = set(steps), SelfTraining.passes

        def passes(self, batch, sums):
            for report in real(self, batch, sums):
                spoilt = batch.step in left and len(batch.source_images) > images
                if spoilt and "mixed" in report.parts:
                    if error is not None:
                        raise error
                    left.discard(batch.step)
                    parts = {**report.parts, "mixed": report.parts["mixed"] * float("nan")}
                    yield replace(report, parts=parts, total=report.total * float("nan"))
                else:
                    yield report

        monkeypatch.setattr(SelfTraining, "passes", passes)

    return at


def _lines(out):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    text = (out / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_dropped_step_is_counted_and_shown_without_nan_and_the_run_is_done(root, tmp_path, spoil):
    spoil(2)
    out = tmp_path / "run"
    output = adapt(root, out, *QUIET, steps=5, method="dacs")
    assert "step 3: not finite" in output.stderr
    assert "total nan" not in output.stderr.replace("(loss total nan", "")
    lines = _lines(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    before, dropped = lines[1:3]
    assert dropped["losses"]["total"] is None
    assert dropped["losses"]["source"] > 0
    assert dropped["dropped"]["in_a_row"] == 1
    assert len(dropped["dropped"]["files"]) == 4
    assert dropped["gradient_norm"] is None
    assert "dropped" not in before
    assert before["gradient_norm"] > 0
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["counts"]) == ("done", {"dropped_steps": 1})


def test_too_many_bad_steps_stop_the_run_and_the_checkpoint_that_stands_is_named(
    root, tmp_path, spoil
):
    spoil(3, 4)
    out = tmp_path / "run"
    words = [*QUIET, "machine.max_bad_steps=2"]
    output = adapt(root, out, *words, steps=6, method="dacs", expect=6)
    assert "step 5: the loss or its gradient is not finite" in output.stderr
    assert "toyland" in output.stderr
    assert "step-000002.pt, step 2" not in output.stderr
    assert "step-000004.pt, step 4" in output.stderr
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["code"], status["counts"]) == (
        *("failed", 6),
        {"dropped_steps": 2},
    )
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert json.loads((out / "status.json").read_text())["state"] == "done"


def test_a_first_step_that_does_not_fit_is_answered_with_figures(root, tmp_path, spoil):
    spoil(0, error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    output = adapt(root, tmp_path / "run", *QUIET, method="dacs", expect=5)
    parts = ("2 source images of 64x64", "2.00 GiB", "--fit", "--batch 1", "source.crop=[48, 48]")
    for part in (*parts, "machine.activation_checkpointing=true"):
        assert part in output.stderr


@pytest.mark.slow
def test_fit_halves_the_step_until_it_fits_and_the_run_resumes_exactly(root, tmp_path, spoil):
    words = [word for word in TINY if not word.startswith("batch.")]
    words = ["adapt", "toyland/dacs", "--root", root, "--steps", 2, "--batch", 4, *words, *OFTEN]
    spoil(*range(9), error=torch.OutOfMemoryError("CUDA out of memory."), images=1)
    out = tmp_path / "run"
    output = udaseg(*words, "--out", out, "--fit", cwd=tmp_path)
    assert "trying 2 micro-batches of 2 + 2" in output.stderr
    assert "trying 4 micro-batches of 1 + 1" in output.stderr
    assert load(out / "recipe.yaml").machine.micro_batches == 4
    assert [line["step"] for line in _lines(out)] == [1, 2]
    given = tmp_path / "given"
    udaseg(*words, "--out", given, "machine.micro_batches=4", cwd=tmp_path)
    assert_same(tensors(out), tensors(given))
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000002.{kind}").unlink()
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(given))


@pytest.mark.slow
def test_fit_halves_a_step_after_the_warm_up_before_the_first_step(root, tmp_path, monkeypatch):
    real = step.compute_gradients
    full = torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(
        "udaseg.training.loop.compute_gradients",
        lambda run, batch, sums: (
            real(run, batch, sums)
            if batch.step < 2 or run.recipe.machine.micro_batches > 1
            else (_ for _ in ()).throw(full)
        ),
    )
    words = [*QUIET, "method.warm_up=0.5"]
    output = adapt(root, tmp_path / "run", *words, "--fit", method="dacs", steps=4)
    assert "trying 2 micro-batches of 1 + 1" in output.stderr
    given = [*words, "machine.micro_batches=2"]
    adapt(root, tmp_path / "given", *given, method="dacs", steps=4)
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "given"))


def test_fit_gives_up_where_one_image_does_not_fit(root, tmp_path, spoil):
    spoil(*range(9), error=torch.OutOfMemoryError("CUDA out of memory."))
    output = adapt(root, tmp_path / "run", *QUIET, "--fit", method="dacs", expect=5)
    assert "1 source images of 64x64" in output.stderr
    assert "use --fit" not in output.stderr


@pytest.mark.slow
def test_memory_that_runs_out_later_saves_the_run_which_goes_on_in_parts(
    root, tmp_path, monkeypatch
):
    real = step.compute_gradients
    monkeypatch.setattr(
        "udaseg.training.loop.compute_gradients",
        lambda run, batch, sums: (
            real(run, batch, sums)
            if batch.step < 3 or run.recipe.machine.micro_batches > 1
            else (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
        ),
    )
    out = tmp_path / "run"
    output = adapt(root, out, *QUIET, method="dacs", steps=5, expect=6)
    assert "after step 3" in output.stderr
    assert "step-000003.pt" in output.stderr
    assert "--fit" in output.stderr
    output = udaseg("adapt", "--resume", out, "--fit", "--root", root, cwd=tmp_path)
    assert "trying 2 micro-batches" in output.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("stops", [False, True])
def test_a_collapse_is_told_and_ends_the_run_where_that_is_wished(
    root, tmp_path, monkeypatch, stops
):
    monkeypatch.setattr(collapse, "CHECK_INTERVAL", 2)
    monkeypatch.setattr(collapse, "PATIENCE_STEPS", dict.fromkeys(collapse.PATIENCE_STEPS, 3))
    monkeypatch.setattr(collapse, "ALWAYS_SURE", 0.0)
    out = tmp_path / "run"
    words = [*QUIET, f"machine.stop_on_collapse={str(stops).lower()}"]
    output = adapt(root, out, *words, method="dacs", steps=6, expect=6 if stops else 0)
    assert "step 4: the teacher's mean confidence in the last 2 steps" in output.stderr
    status = json.loads((out / "status.json").read_text())
    assert status["counts"] == {"alarm_always_sure": 1}
    assert status["state"] == ("failed" if stops else "done")
    assert "always_sure" in next(line for line in _lines(out) if line["step"] == 4)["alarms"]
    if stops:
        assert "machine.stop_on_collapse" in output.stderr
        assert "step-000002.pt" in output.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["machine.micro_batches=3"], "a divisor of batch.source"),
        (["machine.micro_batches=0"], "at least 1"),
        (["machine.max_bad_steps=0"], "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(root, tmp_path, words, expected):
    output = udaseg("adapt", "toyland/dacs", "--root", root, *words, cwd=tmp_path, expect=2)
    assert expected in output.stderr
