"""What a run records while it trains: previews, shares, cost, TensorBoard, best checkpoint."""

import importlib
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from udaseg.errors import DataError
from udaseg.recipe import requirements
from udaseg.runs.checkpoint import load_checkpoint
from udaseg.runs.status import read_cost
from udaseg.training.callbacks import collapse, keep_best
from udaseg.training.callbacks.loggers import tensorboard
from udaseg.training.callbacks.metrics import MetricsFile

OFTEN = ["machine.checkpoint_every=2", "machine.log_every=1", "machine.preview_every=2"]
STEPS = 6


@pytest.fixture(scope="module")
def watched(root, tmp_path_factory):
    """Return a finished run that recorded its pseudo-labels every other step."""
    out = tmp_path_factory.mktemp("watched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "CHECK_INTERVAL", 2)
        words = [*OFTEN, "--keep-best", "infomax", "--logger", "none"]
        adapt(root, out, *words, method="dacs", steps=STEPS)
    return out


def events(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_pictures_lie_in_the_run(watched):
    names = sorted(path.name for path in (watched / "previews").iterdir())
    assert names == ["step-000002.png", "step-000004.png", "step-000006.png"]


def test_shares_of_the_classes_and_the_entropy_are_written_down(watched):
    recorded = [event for event in events(watched) if "pseudo_labels" in event]
    assert [event["step"] for event in recorded] == [2, 4, 6]
    for event in recorded:
        assert len(event["pseudo_labels"]) == 13
        assert sum(event["pseudo_labels"].values()) == pytest.approx(1)
    figures = [event["losses"]["uncertainty"] for event in events(watched) if "losses" in event]
    assert len(figures) == STEPS
    assert all(0 < value <= 1.0001 for value in figures)


def test_what_a_run_cost_adds_up_over_its_starts(watched, root, tmp_path):
    cost = read_cost(watched)
    assert cost["step"] == STEPS
    assert cost["images"] == STEPS * 4
    assert cost["seconds"] > 0
    assert cost["peak_memory_mib"] > 50
    out = tmp_path / "run"
    shutil.copytree(watched, out)
    before = {**cost, "seconds": 1000.0, "images": 16, "peak_memory_mib": 10**7}
    (out / "cost.json").write_text(json.dumps(before))
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000006.{kind}").unlink()
    udaseg("adapt", "--resume", out, "--root", root, "--logger", "none", cwd=tmp_path)
    again = read_cost(out)
    assert 1000 < again["seconds"] < 2000
    assert again["images"] == 16 + 2 * 4
    assert again["peak_memory_mib"] == 10**7


def test_the_best_checkpoint_can_be_used_like_a_run(watched, root, tmp_path):
    best = watched / "checkpoints" / "best-infomax"
    record = json.loads((best / "best.json").read_text())
    values = {int(step): known for step, known in record["steps"].items()}
    assert sorted(values) == [2, 4, 6]
    logged = {event["step"]: event["select"] for event in events(watched) if "select" in event}
    assert logged == {step: {"infomax": known["value"]} for step, known in values.items()}
    ranked = sorted(values, key=lambda s: (not values[s]["collapsed"], values[s]["value"], s))
    assert record["best"] == ranked[-1]
    assert load_checkpoint(best / f"step-{record['best']:06d}.pt").step == record["best"]
    output = udaseg("eval", best, "--root", root, "--format", "json", "-q", cwd=tmp_path)
    assert f"student at step {record['best']}" in output.stdout
    assert (watched / "eval" / "toyland-target-val" / "scores.json").is_file()
    assert not (best / "eval").exists()


def test_a_run_that_keeps_its_best_is_whole(watched, tmp_path):
    output = udaseg("verify", watched, cwd=tmp_path)
    assert f"{STEPS + 3} lines of metrics" in output.stdout


@pytest.mark.slow
def test_a_device_that_is_too_full_to_compare_ends_no_run(watched, root, tmp_path, monkeypatch):
    real, steps = keep_best.compute_criteria, []

    def measured(candidate, *args, **words):
        steps.append(candidate.step)
        if candidate.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        real(candidate, *args, **words)

    monkeypatch.setattr(keep_best, "compute_criteria", measured)
    out = tmp_path / "run"
    words = [*OFTEN, "--keep-best", "infomax", "--logger", "none"]
    output = adapt(root, out, *words, method="dacs", steps=STEPS)
    assert output.stderr.count("no further checkpoints are compared in this run") == 1
    assert "Tried to allocate 2.00 GiB.)" in output.stderr
    assert steps == [2, 4]
    assert [event["step"] for event in events(out) if "select" in event] == [2]
    assert_same(tensors(out), tensors(watched))


@pytest.mark.slow
def test_images_that_cannot_be_read_for_comparing_end_the_run(root, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise DataError("a.png: damaged")

    monkeypatch.setattr(keep_best, "compute_criteria", broken)
    words = [*OFTEN, "--keep-best", "infomax", "--logger", "none"]
    output = adapt(root, tmp_path / "run", *words, method="dacs", steps=2, expect=3)
    assert "a.png: damaged" in output.stderr


@pytest.mark.parametrize("compared", [True, False])
def test_a_resumed_run_keeps_what_the_undisturbed_one_keeps(watched, root, tmp_path, compared):
    """Kill after the checkpoint of step 4, before or after it was compared."""
    out = tmp_path / "run"
    shutil.copytree(watched, out)
    best = out / "checkpoints" / "best-infomax"
    record = json.loads((best / "best.json").read_text())
    whole = json.loads((best / "best.json").read_text())
    del record["steps"]["6"]
    if not compared:
        del record["steps"]["4"]
    record["best"] = 2
    (best / "best.json").write_text(json.dumps(record))
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000006.{kind}").unlink()
        for path in best.glob(f"step-*.{kind}"):
            path.unlink()
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert json.loads((best / "best.json").read_text()) == whole
    assert_same(tensors(out), tensors(watched))


def test_watching_changes_no_tensor(watched, root, tmp_path):
    out = tmp_path / "run"
    words = ["machine.checkpoint_every=2", "machine.preview_every=0", "--logger", "none"]
    adapt(root, out, *words, method="dacs", steps=STEPS)
    assert not (out / "previews").exists()
    assert_same(tensors(out), tensors(watched))


class Writer:
    """Replaces TensorBoard's writer."""

    instances: list["Writer"] = []  # noqa: RUF012 (test only)

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.images, self.closed = {}, [], False
        Writer.instances.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars.setdefault(tag, []).append((step, value))

    def add_image(self, tag, pixels, step, dataformats):
        assert dataformats == "HWC"
        assert pixels.dtype == np.uint8
        self.images.append(step)

    def close(self):
        self.closed = True


@pytest.fixture
def board(monkeypatch):
    package = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(requirements, "is_installed", lambda _: True)
    Writer.instances = []
    return Writer


@pytest.mark.slow
def test_tensorboard_gets_every_number_of_the_metrics(root, tmp_path, board):
    out = tmp_path / "run"
    adapt(root, out, "machine.log_every=1", method="dacs", steps=2)
    (writer,) = board.instances
    assert writer.folder == str(out / "tensorboard")
    assert writer.purge_step == 1
    assert writer.closed
    assert writer.images == [2]
    for event in events(out):
        for name, value in event["losses"].items():
            assert (event["step"], value) in writer.scalars[f"losses/{name}"]
        assert (event["step"], event["gradient_norm"]) in writer.scalars["run/gradient_norm"]
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert len(board.instances) == 1  # no steps were left to train


def test_without_the_package_the_default_is_silent(root, tmp_path, monkeypatch):
    monkeypatch.setattr(requirements, "is_installed", lambda _: False)
    out = tmp_path / "run"
    output = adapt(root, out, method="dacs", steps=1)
    assert "ensor" not in output.stderr.replace("tensors", "")
    assert not (out / "tensorboard").exists()


def after(step):
    """Return all that loggers read of a state."""
    return SimpleNamespace(step=step)


def test_a_tensorboard_that_cannot_be_written_ends_nothing(tmp_path, board, caplog, monkeypatch):
    def broken(*_, **__):
        raise ImportError("half installed")

    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", broken)
    numbers, event = tensorboard.TensorBoard(tmp_path), {"losses": {"total": 1.0}}
    numbers.begin(after(0))
    numbers.on_event(after(1), event)
    MetricsFile(tmp_path).on_event(after(1), event)
    assert "half installed" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "losses": {"total": 1.0}}\n'


def test_going_back_hides_the_later_steps(tmp_path, board):
    numbers = tensorboard.TensorBoard(tmp_path)
    numbers.begin(after(0))
    numbers.on_event(
        after(9), {"losses": {"total": float("nan"), "source": 2.0}, "dropped": {"in_a_row": 1}}
    )
    numbers.on_rewind(after(4))
    first, second = board.instances
    assert first.scalars == {"losses/source": [(9, 2.0)]}
    assert first.closed
    assert second.purge_step == 5


def test_the_real_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    importlib.invalidate_caches()
    numbers = tensorboard.TensorBoard(tmp_path)
    numbers.begin(after(0))
    numbers.on_event(after(1), {"losses": {"total": 1.5}})
    numbers.on_preview(after(1), np.zeros((8, 8, 3), np.uint8))
    numbers.end(after(1), None)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert read.Scalars("losses/total")[0].value == 1.5
    assert read.Tags()["images"] == ["preview"]


def test_info_says_what_a_run_is_and_what_it_holds(watched, tmp_path):
    info = json.loads(udaseg("info", watched, "--format", "json", cwd=tmp_path).stdout)
    best = json.loads((watched / "checkpoints" / "best-infomax" / "best.json").read_text())["best"]
    assert info["step"] == "6 of 6"
    assert info["recipe"] == "dacs, seed 0, method self_training"
    manifest = json.loads((watched / "checkpoints" / "step-000006.json").read_text())
    assert info["sha256"] == f"{manifest['sha256']} (verified)"
    assert info["kept"] == "steps 4, 6"
    assert f"at step {best}" in info["best"][0]
    assert info["classes"].startswith("13: road, ")
    assert {line.partition(":")[0] for line in info["weights"]} == {
        "student",
        "teacher",
        "optimiser",
    }
    assert info["scores"][0].startswith("toyland-target-val: mIoU")
    assert "MiB of the process" in info["cost"]
    shown = udaseg("info", watched / "checkpoints" / "step-000004.pt", cwd=tmp_path).stdout
    assert "4 of 6" in shown
    assert "done" in shown


def test_info_of_a_run_without_a_checkpoint_still_tells(watched, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(watched, out)
    shutil.rmtree(out / "checkpoints")
    shown = udaseg("info", out, cwd=tmp_path).stdout
    assert "none yet" in shown
    assert "mobilenet_v2" in shown
    output = udaseg("info", tmp_path / "nowhere", cwd=tmp_path, expect=3)
    assert "no such run" in output.stderr


def test_a_damaged_record_of_the_cost_counts_as_none(tmp_path):
    for text in ("{", "[]", '{"step": 1}', '{"step": "x"}'):
        (tmp_path / "cost.json").write_text(text)
        assert read_cost(tmp_path) == {}


@pytest.mark.slow
def test_a_run_of_stages_draws_what_each_of_them_learns_from(root, tmp_path):
    out = tmp_path / "run"
    words = ["machine.preview_every=1", "validation.data=null", "--logger", "none"]
    adapt(root, out, *words, method="spcl", steps=10)
    wide = {
        int(path.stem[5:]): cv2.imread(str(path)).shape[1] for path in (out / "previews").iterdir()
    }
    assert sorted(wide) == list(range(1, 11))
    # no pseudo-labels in the warm-up, stored ones afterwards
    assert {wide[step] // 320 for step in range(1, 5)} == {3}
    assert {wide[step] // 320 for step in range(5, 11)} == {4}


_opened: list[str] = []


def _note_opened(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".pt"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_note_opened)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "image.png"],
        pytest.param(["eval", "RUN", "--root", "ROOT"], marks=pytest.mark.slow),
        pytest.param(["export", "RUN", "--format", "state-dict"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_command_opens_its_checkpoint_once(watched, root, tmp_path, words):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 64, 3), np.uint8))
    if words[0] == "predict":
        words = [*words, "--checkpoint", "RUN"]
    run = shutil.copytree(watched, tmp_path / "run")
    given = [{"RUN": run, "ROOT": root}.get(word, word) for word in words]
    _opened.clear()
    udaseg(*given, cwd=tmp_path)
    assert _opened == [str(run / f"checkpoints/step-{STEPS:06d}.pt")]
