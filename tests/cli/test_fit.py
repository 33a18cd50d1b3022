"""`udaseg train` and `udaseg adapt` through the command line, on a tiny toyland."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.cli.running import udaseg
from tests.support.toy import TINY, toy_root
from udaseg.runs.folder import writer_lock

REPOSITORY = Path(__file__).resolve().parents[2]
LONG = 40
OFTEN = ["machine.checkpoint_every=2", "machine.keep_checkpoints=9", "machine.log_every=1"]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return toy_root(tmp_path_factory.mktemp("data"))


def adapt(root, out, *words, method="rccr", steps=3, expect=0, cwd=None):
    return udaseg(
        *("adapt", f"toyland/{method}", "--root", root, "--out", out, "--steps", steps),
        *TINY,
        *words,
        cwd=cwd or out.parent,
        expect=expect,
    )


def tensors(run):
    """Return all tensors of a run's newest checkpoint by dotted name."""
    path = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    payload = torch.load(path, weights_only=True)
    values = dict(payload["objective"])
    for index, state in payload["optimizer"]["state"].items():
        for name, value in state.items():
            if torch.is_tensor(value):
                values[f"optimizer.{index}.{name}"] = value
    return values


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} tensors differ, first {different[:3]}"


@pytest.fixture(scope="session")
def finished(root, tmp_path_factory):
    """Return a finished RCCR run of six steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    adapt(
        root,
        out,
        "machine.checkpoint_every=2",
        "machine.keep_checkpoints=9",
        "machine.log_every=1",
        steps=6,
    )
    return out


def test_a_run_folder_holds_all_that_is_needed_to_run_it_again(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "recipe.yaml",
        "command.txt",
        "environment.json",
        "status.json",
        "metrics.jsonl",
        "train.log",
        "checkpoints",
        "eval",
    }
    assert not (finished / "writer.lock").exists()
    assert json.loads((finished / "status.json").read_text())["state"] == "done"
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"total", "source", "mixed", "regional", "confident"} <= set(lines[0]["losses"])
    scores = json.loads((finished / "eval" / "toyland-target-val" / "scores.json").read_text())
    assert len(scores["confusion"]) == 13
    assert (finished / "command.txt").read_text().startswith("udaseg adapt")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_where_the_undisturbed_one_ends(root, finished, tmp_path, workers):
    """Stop after four of six steps, resume, and compare every tensor bit for bit."""
    out = tmp_path / "run"
    adapt(
        root,
        out,
        "machine.checkpoint_every=2",
        "machine.keep_checkpoints=9",
        "machine.log_every=1",
        steps=6,
    )
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000006.{kind}").unlink()
    (out / "metrics.jsonl").write_text(
        (out / "metrics.jsonl").read_text() + '{"step": 7, "los', encoding="utf-8"
    )
    udaseg("adapt", "--resume", out, "--root", root, "--workers", workers, cwd=tmp_path)
    assert_same(tensors(out), tensors(finished))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_resuming_with_other_numbers_is_refused_with_the_difference(root, finished, tmp_path):
    output = udaseg(
        "adapt", "--resume", finished, "--root", root, "optimizer.lr=0.5", cwd=tmp_path, expect=2
    )
    assert "optimizer.lr was" in output.stderr


def test_poisoned_target_labels_leave_training_bit_identical(root, finished, tmp_path):
    """Random labels for the target's training images in the index must not change anything."""
    poisoned = tmp_path / "data"
    toy_root(poisoned)
    folder = poisoned / "prepared" / "toyland-target"
    index = json.loads((folder / "index.json").read_text())
    rng = np.random.default_rng(0)
    for row in index["splits"]["train"]:
        row[1], row[4] = f"labels/{Path(row[0]).stem}.png", [1] * 13
        (folder / "labels").mkdir(exist_ok=True)
        noise = rng.integers(0, 13, (64, 128), dtype=np.uint8)
        cv2.imwrite(str(folder / row[1]), noise)
    (folder / "index.json").write_text(json.dumps(index))
    out = tmp_path / "run"
    adapt(poisoned, out, steps=6)
    assert_same(tensors(out), tensors(finished))


def test_an_existing_run_folder_is_not_written_into(root, finished, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    output = adapt(root, finished, expect=2)
    assert "--resume" in output.stderr
    assert "--overwrite" in output.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_overwrite_spares_a_folder_that_is_no_run(root, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    output = adapt(root, tmp_path / "photos", "--overwrite", expect=2)
    assert "is not a run folder" in output.stderr
    assert (tmp_path / "photos" / "a.txt").read_text() == "mine"


def test_dry_run_prints_plan_and_recipe_and_writes_nothing(root, tmp_path):
    output = adapt(root, tmp_path / "run", "--dry-run")
    assert "kind: self_training" in output.stdout
    assert "5 images, labels unused" in output.stderr
    assert not (tmp_path / "run").exists()


def test_source_only_is_trains_and_adapting_is_adapts(root, tmp_path):
    output = udaseg("train", "toyland/rccr", "--root", root, cwd=tmp_path, expect=2)
    assert "udaseg adapt" in output.stderr
    out = tmp_path / "run"
    udaseg(
        "train",
        "toyland/source_only",
        "--root",
        root,
        "--out",
        out,
        "--steps",
        2,
        *TINY,
        cwd=tmp_path,
    )
    output = udaseg("eval", out, "--root", root, "--format", "csv", cwd=tmp_path)
    assert output.stdout.startswith("class,iou")
    output = udaseg("eval", out, "--root", root, "--fail-under", 99, cwd=tmp_path, expect=7)
    assert "below --fail-under" in output.stderr
    output = udaseg("eval", out, "--root", root, "--weights", "teacher", cwd=tmp_path, expect=3)
    assert "no teacher" in output.stderr


def test_a_strangers_own_folder_is_a_target_and_can_be_predicted(root, tmp_path):
    """Run the README's two commands on a nested folder of photos of several sizes."""
    rng = np.random.default_rng(0)
    for name, size in {
        "a/one.jpg": (90, 160),
        "a/b/two.png": (120, 70),
        "three.JPG": (64, 64),
    }.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    output = udaseg(
        *("adapt", "--source", "toyland", "--target", "photos", "--root", root, "--steps", 2),
        *[word for word in TINY if not word.startswith("validation")],
        cwd=tmp_path,
    )
    assert "photos: 3 images" in output.stderr
    output = udaseg("predict", "photos", "--save", "color,ids,overlay,confidence", cwd=tmp_path)
    assert "runs/toyland-photos-rccr-s0" in output.stderr + output.stdout
    ids = sorted((tmp_path / "masks" / "ids").rglob("*.png"))
    assert len(ids) == 3
    sizes = sorted(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in ids)
    assert sizes == [(64, 64), (90, 160), (120, 70)]


def test_starting_from_weights_takes_the_student(root, finished, tmp_path):
    out = tmp_path / "run"
    adapt(root, out, "--init", finished, "optimizer.lr=1e-12", method="dacs", steps=1)
    trained, start = tensors(out), tensors(finished)
    name = "student.head.classify.weight"
    assert torch.allclose(trained[name], start[name], atol=1e-6)
    output = adapt(root, tmp_path / "other", "--init", finished, "model.head=deeplab_v2", expect=3)
    assert "of another network" in output.stderr


def without_checkpoints(run):
    """Put a run into the state that a kill before its first checkpoint leaves."""
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").write_text('{"state": "running", "step": 0}')


def starting_weights(finished, folder, step):
    """Copy a checkpoint of a run to a folder of starting weights; return its path."""
    folder.mkdir(exist_ok=True)
    for kind in ("pt", "json"):
        shutil.copy(finished / "checkpoints" / f"step-{step:06d}.{kind}", folder)
    return folder / f"step-{step:06d}.pt"


@pytest.mark.slow
def test_a_run_from_weights_that_goes_on_before_its_first_checkpoint_begins_with_them(
    root, finished, tmp_path
):
    start, out = starting_weights(finished, tmp_path / "start", 6), tmp_path / "run"
    adapt(root, out, "--init", "start/step-000006.pt", "validation.data=null", method="dacs")
    expected = tensors(out)
    again = ("adapt", "--resume", out, "--root", root)
    without_checkpoints(out)
    (tmp_path / "elsewhere").mkdir()
    udaseg(*again, cwd=tmp_path / "elsewhere")
    assert_same(tensors(out), expected)
    whole = start.read_bytes()
    start.write_bytes(whole[:-1])
    udaseg(*again, cwd=tmp_path)  # the run has its own checkpoint by now
    without_checkpoints(out)
    output = udaseg(*again, cwd=tmp_path, expect=3).stderr
    assert f"{start} (--init)" in output
    assert "has changed; restore the one with SHA-256" in output
    start.unlink()
    output = udaseg(*again, cwd=tmp_path, expect=3).stderr
    assert "cannot be read (No such file or directory)" in output
    start.write_bytes(whole)
    udaseg(*again, cwd=tmp_path)
    assert_same(tensors(out), expected)
    (out / "init.json").write_text("{")
    without_checkpoints(out)
    assert "init.json: is damaged" in udaseg(*again, cwd=tmp_path, expect=3).stderr


def test_torchruns_second_start_begins_with_the_weights_of_the_first(
    root, finished, tmp_path, monkeypatch
):
    """The run that `--init` names has trained further between the two starts."""
    starting_weights(finished, tmp_path / "start", 4)
    out, words = tmp_path / "run", ["--init", tmp_path / "start", "validation.data=null"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    adapt(root, out, *words, method="dacs", steps=2)
    expected = tensors(out)
    without_checkpoints(out)
    starting_weights(finished, tmp_path / "start", 6)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    output = adapt(root, out, *words, method="dacs", steps=2)
    assert "torchrun restarted" in output.stderr
    assert_same(tensors(out), expected)


def test_a_run_that_takes_the_place_of_its_own_start_knows_its_digest(root, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    start = out / "checkpoints" / "step-000006.pt"
    digest = json.loads(start.with_suffix(".json").read_text())["sha256"]
    words = ["--init", start, "--overwrite", "validation.data=null"]
    adapt(root, out, *words, method="dacs", steps=1)
    record = json.loads((out / "init.json").read_text())
    assert record == {"checkpoint": str(start), "sha256": digest, "step": 6}
    adapt(root, out, "--overwrite", "validation.data=null", method="dacs", steps=1)
    assert not (out / "init.json").exists()


def test_a_checkpoint_from_before_the_first_step_is_gone_on_from(root, tmp_path):
    """A signal while a run returns to its first step leaves such a checkpoint."""
    out = tmp_path / "run"
    words = ["optimizer.lr=1e-12", "validation.data=null"]
    adapt(root, out, *words, method="dacs", steps=1)
    last, first = (out / "checkpoints" / f"step-00000{step}.pt" for step in (1, 0))
    payload = torch.load(last, weights_only=True)
    payload["step"] = 0
    payload["optimizer"]["state"] = {}
    payload["objective"]["student.head.classify.bias"].fill_(7.0)
    for path in (last, last.with_suffix(".json")):
        path.unlink()
    torch.save(payload, first)
    data = first.read_bytes()
    manifest = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    first.with_suffix(".json").write_text(json.dumps(manifest))
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    bias = tensors(out)["student.head.classify.bias"]
    assert torch.allclose(bias, torch.full_like(bias, 7.0))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_unasked(
    root, finished, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for path in (out / "checkpoints").glob("step-*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    again = ("adapt", "--resume", out, "--root", root)
    output = udaseg(*again, cwd=tmp_path, expect=3).stderr
    assert "(step-000006.pt, step-000004.pt, step-000002.pt)" in output
    assert "remove the folder to train again" in output
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before
    shutil.rmtree(out / "checkpoints")
    udaseg(*again, cwd=tmp_path)
    assert_same(tensors(out), tensors(finished))


@pytest.fixture(scope="session")
def longer(root, tmp_path_factory):
    """Return a finished run that is long enough to be interrupted by a signal."""
    out = tmp_path_factory.mktemp("longer") / "run"
    adapt(root, out, "machine.log_every=1", "validation.data=null", steps=LONG)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
    ],
)
def test_a_signal_saves_the_step_and_the_run_goes_on(root, longer, tmp_path, number, code):
    out = tmp_path / "run"
    words = ["adapt", "toyland/rccr", "--root", root, "--out", out, "--steps", LONG, *TINY]
    words += ["machine.log_every=1", "machine.checkpoint_every=0", "validation.data=null"]
    process = subprocess.Popen(
        [sys.executable, "-m", "udaseg", *map(str, words)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "--resume" in output
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert_same(tensors(out), tensors(longer))


def test_resuming_with_other_files_or_classes_is_refused(root, tmp_path):
    mine = toy_root(tmp_path / "data")
    out = tmp_path / "run"
    adapt(mine, out, steps=2)
    for kind in ("pt", "json"):
        (out / "checkpoints" / f"step-000002.{kind}").rename(out / f"kept.{kind}")
    index = mine / "prepared" / "toyland-target" / "index.json"
    whole = index.read_text()
    document = json.loads(whole)
    document["splits"]["train"].pop()
    for kind in ("pt", "json"):
        (out / f"kept.{kind}").rename(out / "checkpoints" / f"step-000002.{kind}")
    index.write_text(json.dumps(document))
    output = udaseg("adapt", "--resume", out, "--root", mine, cwd=tmp_path, expect=3)
    assert "the files of target have changed" in output.stderr
    index.write_text(whole)
    source = mine / "prepared" / "toyland" / "index.json"
    document = json.loads(source.read_text())
    document["classes"][0]["name"] = "street"
    source.write_text(json.dumps(document))
    output = udaseg("adapt", "--resume", out, "--root", mine, cwd=tmp_path, expect=3)
    assert "street" in output.stderr
    output = adapt(mine, tmp_path / "other", "--init", out, "--dry-run")
    assert "begins anew for street; drops road. All other weights are kept" in output.stderr


def test_resume_before_the_first_checkpoint_still_refuses_other_numbers(root, tmp_path):
    out = tmp_path / "run"
    adapt(root, out, steps=2)
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    output = udaseg("adapt", "--resume", out, "--root", root, "steps=9", cwd=tmp_path, expect=2)
    assert "steps was 2" in output.stderr
    output = udaseg(
        "adapt", "--resume", out, "--root", root, "--precision", "bf16", cwd=tmp_path, expect=2
    )
    assert "machine.precision was fp32" in output.stderr


def test_weights_that_are_not_finite_are_never_saved(root, tmp_path):
    """The loss is finite but the update is not: the weights must not replace a good checkpoint."""
    out = tmp_path / "run"
    adapt(root, out, "optimizer.lr=1e38", steps=1, method="dacs", expect=6)
    assert not list((out / "checkpoints").glob("*")) if (out / "checkpoints").exists() else True
    assert json.loads((out / "status.json").read_text())["state"] == "failed"


def test_running_out_of_memory_is_answered_with_advice(root, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("udaseg.training.stages.run_steps", full)
    output = adapt(root, tmp_path / "run", expect=5)
    assert "--batch 1" in output.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["code"] == 5


def test_an_unexpected_error_is_no_run_that_goes_on(root, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("udaseg.training.stages.run_steps", broken)
    output = adapt(root, tmp_path / "run", expect=1)
    assert "a fault of ours" in output.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_ones_own_source_is_not_scored_on_the_recipes_target(root, tmp_path):
    output = udaseg(
        "train",
        "gta5_cityscapes/source_only",
        "--source",
        "toyland",
        "--root",
        root,
        "--steps",
        1,
        "--dry-run",
        *[w for w in TINY if "valid" not in w],
        cwd=tmp_path,
    )
    assert "scored on" not in output.stderr


def test_info_tells_what_a_run_is(finished, tmp_path):
    output = udaseg("info", finished, cwd=tmp_path)
    assert "mobilenet_v2" in output.stdout
    assert "6 of 6" in output.stdout
    assert "self_training + regional" in " ".join(output.stdout.split())


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["adapt", "--method", "rccr"], 3, "udaseg prepare gta5"),
        (["adapt", "--method", "rcrc"], 2, "rccr"),
        (["adapt", "toyland/rccr", "optimzer.lr=1"], 2, "did you mean"),
        (["adapt", "toyland/rccr", "steps=many"], 2, "steps"),
        (["adapt", "toyland/rccr", "target.crop=[64, 64]"], 2, "same as source.crop"),
        (["adapt", "toyland/rccr", "method.regional.region_size=99"], 2, "cells"),
        (["adapt", "toyland/rccr", "machine.device=cuda:77"], 5, "cuda:77 is not available"),
        (["adapt", "toyland/rccr", "--target", "nowhere"], 3, "nowhere"),
        (["adapt", "toyland/rccr", "model.weights=none.pth"], 3, "no such weights"),
        (["adapt", "toyland/rccr", "model.backbone=resnet9"], 2, "resnet18"),
        (["adapt", "toyland/rccr", "--init", "nowhere"], 3, "no such run"),
        (["adapt", "--resume", "nowhere"], 3, "recipe.yaml"),
        (["eval", "nowhere"], 3, "no such run"),
        (["predict", "nowhere.png", "--checkpoint", "nowhere"], 3, "no such run"),
        (["info", "nowhere"], 3, "no such run"),
        (["prepare", "gta6"], 3, "no dataset of that name"),
        (["prepare", "gta5"], 3, "licence"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, list) else None,
)
def test_wrong_input_is_answered_with_what_to_do(root, tmp_path, words, code, expected):
    options = ["--root", root] if words[0] in ("adapt", "eval", "prepare") else []
    output = udaseg(*words, *options, cwd=tmp_path, expect=code)
    assert expected in output.stderr


def test_two_writers_of_one_run_are_refused_and_a_dead_ones_lock_is_taken_over(
    root, finished, tmp_path
):
    lock = finished / "writer.lock"
    try:
        with writer_lock(finished):
            output = udaseg("adapt", "--resume", finished, "--root", root, cwd=tmp_path, expect=2)
            assert f"process {os.getpid()} on" in output.stderr
        # a living process can have the PID of the dead one, after a restart of the machine
        lock.write_text(json.dumps({"pid": os.getppid(), "host": os.uname().nodename}))
        udaseg("adapt", "--resume", finished, "--root", root, cwd=tmp_path)
        assert not lock.exists()
        lock.write_text(json.dumps({"pid": os.getpid(), "host": "another-host"}))
        udaseg("adapt", "--resume", finished, "--root", root, cwd=tmp_path, expect=2)
    finally:
        lock.unlink(missing_ok=True)


def test_a_loss_that_is_not_finite_stops_with_the_files_named(root, tmp_path):
    output = adapt(root, tmp_path / "run", "optimizer.lr=1e30", steps=20, method="dacs", expect=6)
    assert "not finite" in output.stderr
    assert "toyland" in output.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["code"] == 6
