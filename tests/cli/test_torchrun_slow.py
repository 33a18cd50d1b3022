"""More of `torchrun -m udaseg`: equals one process, changed counts, signals, errors."""

import json
import platform
import shutil
import signal

import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import tensors
from tests.support import torchrun as command
from tests.support.toy import COUNTS, toy_root
from udaseg.data.prepare.prepare import prepare_dataset

pytestmark = pytest.mark.slow

STEPS = 5
# AdamW normalises gradients, so it would turn rounding in a nearly zero gradient into a full step
SGD = ["optimizer.kind=sgd", "optimizer.lr=0.01", "optimizer.warmup=0"]
TWICE = ["batch.source=2", "batch.target=2"]
BY_RUNNING = ["method.teacher.batch_statistics=false"]
SURE = ["method.mixing.confidence=0.09", "method.regional.min_confidence=0.05"]


def _words(root, run, *words, one=False, **settings):
    command_words = command.adapt_words(root, run, *words, **settings)
    if not one:
        return command_words
    return [word for word in command_words if not str(word).startswith("batch.")] + TWICE


def _assert_close(one, two, atol):
    pairs = list(zip(command.lines(one), command.lines(two), strict=True))
    assert len(pairs) == STEPS
    for first, second in pairs:
        assert first["losses"] == pytest.approx(second["losses"], abs=atol)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if not name.startswith("optimizer"):
            # a variance of features is a sum of squares and larger than the weights
            limit = 10 * atol if "running" in name else atol
            assert torch.allclose(value.double(), theirs[name].double(), atol=limit, rtol=0), name


@pytest.mark.parametrize(
    ("method", "words"),
    [("rccr", [*BY_RUNNING, *SURE]), ("sepico", BY_RUNNING), ("rccr_spcl", [*BY_RUNNING, *SURE])],
)
def test_two_ranks_agree_with_one_process_of_the_same_batch(root, tmp_path, method, words):
    settings = {"method": method, "steps": STEPS}
    command.torchrun(*_words(root, tmp_path / "two", *SGD, *words, **settings), cwd=tmp_path)
    udaseg(*_words(root, tmp_path / "one", *SGD, *words, one=True, **settings), cwd=tmp_path)
    _assert_close(tmp_path / "one", tmp_path / "two", 1e-5)


def test_stages_agree_too_with_their_pseudo_labels(root, tmp_path):
    """The last stage of the recipe trains batch norm; a tiny rate keeps rounding errors small."""
    words = ["optimizer.kind=sgd", "optimizer.lr=1e-6", "optimizer.warmup=0"]
    settings = {"method": "spcl", "steps": STEPS}
    command.torchrun(*_words(root, tmp_path / "two", *words, **settings), cwd=tmp_path)
    udaseg(*_words(root, tmp_path / "one", *words, one=True, **settings), cwd=tmp_path)
    _assert_close(tmp_path / "one", tmp_path / "two", 1e-5)
    records = [
        json.loads((tmp_path / run / "stages/2-contrast/pseudo_labels.json").read_text())
        for run in ("one", "two")
    ]
    assert records[0]["images"] == records[1]["images"] == 5
    assert sorted(records[0]["classes"]) == sorted(records[1]["classes"])


def test_a_run_goes_on_with_another_number_of_processes_if_the_step_is_as_large(root, tmp_path):
    run = tmp_path / "run"
    command.torchrun(*_words(root, run, *BY_RUNNING, "machine.checkpoint_every=2"), cwd=tmp_path)
    for kind in ("pt", "json"):
        (run / "checkpoints" / f"step-000004.{kind}").unlink()
    other = tmp_path / "other"
    shutil.copytree(run, other)
    output = udaseg("adapt", "--resume", run, "--root", root, cwd=tmp_path, expect=2)
    assert "batch.source was 2 and is now 1" in output.stderr
    assert "2 before, 1 now" in output.stderr
    output = udaseg("adapt", "--resume", run, "--root", root, "--batch", 2, cwd=tmp_path)
    assert "with 1 processes instead of 2" in output.stderr
    assert "lines of metrics" in udaseg("verify", run, cwd=tmp_path).stdout
    # from now on it is a run of one process
    udaseg("adapt", "--resume", run, "--root", root, cwd=tmp_path)
    _, err = command.torchrun("adapt", "--resume", run, "--root", root, cwd=tmp_path, expect=1)
    assert err.count("batch.source was 2 and is now 4") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_to_torchrun_saves_and_the_processes_end_with_its_code(
    root, tmp_path, number, code
):
    run = tmp_path / "run"
    words = _words(root, run, *BY_RUNNING, "machine.checkpoint_every=0", steps=400)
    process = command.started(*words, cwd=tmp_path)
    command.wait_for_step(process, run, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("and saved; continue with --resume") == 1
    record = command.status(run)
    assert (record["state"], record["signal"]) == ("interrupted", number)
    path = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    assert int(path.stem[5:]) == record["step"] == command.lines(run)[-1]["step"]
    assert not (run / "writer.lock").exists()
    assert code == 128 + number


def test_a_signal_to_one_process_stops_both_at_the_same_step(root, tmp_path):
    run = tmp_path / "run"
    words = _words(root, run, *BY_RUNNING, "machine.checkpoint_every=0", steps=400)
    process = command.started(*words, cwd=tmp_path)
    command.wait_for_step(process, run, 2)
    command.kill(process, 1, signal.SIGTERM)
    command.ended(process, expect=1)
    assert command.status(run)["state"] == "interrupted"


def test_an_error_in_the_middle_of_a_run_is_told_once(tmp_path):
    """All source images are damaged while two processes read them, so both fail."""
    run = tmp_path / "run"
    mine = toy_root(tmp_path / "data")  # an index stores its image folder
    words = _words(mine, run, *BY_RUNNING, steps=400)
    process = command.started(*words, cwd=tmp_path)
    command.wait_for_step(process, run, 1)
    for path in (mine / "toyland" / "source").rglob("*.png"):
        path.write_bytes(b"no picture")
    _, err = command.ended(process, expect=1)
    assert err.count("error: ") == 1
    record = command.status(run)
    assert (record["state"], record["code"]) == ("failed", 3)


def test_words_that_are_wrong_are_told_once(root, tmp_path):
    _, err = command.torchrun("adapt", "toyland/rccr", "stepz=3", cwd=tmp_path, expect=1)
    assert err.count("did you mean") == 1
    _, err = command.torchrun(*_words(root, tmp_path / "run", "--fit"), cwd=tmp_path, expect=1)
    assert err.count("machine.micro_batches=2") == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    _, err = command.torchrun(*_words(root, tmp_path / "run"), cwd=tmp_path, expect=1, restarts=1)
    assert "is not a run folder" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


EACH_HIS_OWN = """
import os, runpy, sys

sys.argv += sys.argv.pop(1).format(rank=os.environ["RANK"]).split()
runpy.run_module("udaseg", run_name="__main__", alter_sys=True)
"""
"""Ends the command with words that hold the rank."""


@pytest.fixture(scope="module")
def roots(root, tmp_path_factory):
    """Return a folder of pairs of data folders, whose names end in a rank.

    With `few` the second has fewer images, with `label` it has another label.
    """
    folder = tmp_path_factory.mktemp("roots")
    (folder / "few0").symlink_to(root)
    (folder / "label0").symlink_to(root)
    toy_root(folder / "few1", {**COUNTS, "target/train": 4})
    toy_root(folder / "label1")
    labels = folder / "label1/toyland/source/train/labels"
    (labels / "00001.png").write_bytes((labels / "00000.png").read_bytes())
    prepare_dataset("toyland", root=folder / "label1")
    return folder


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("--seed {rank}", "different settings: seed is 0 in process 0 on "),
        ("--root {roots}/few{rank}", "see different files: the content of target is "),
        ("--root {roots}/few{rank}", "; the list of target is "),
        ("--root {roots}/label{rank}", "see different files: the content of source is "),
    ],
)
def test_processes_that_were_started_differently_are_refused(roots, tmp_path, own, told):
    (tmp_path / "own.py").write_text(EACH_HIS_OWN)
    words = [own.replace("{roots}", str(roots)), *_words(roots / "few0", tmp_path / "run")]
    if own.startswith("--root"):
        at = words.index("--root")
        del words[at : at + 2]
    program = (str(tmp_path / "own.py"),)
    _, err = command.torchrun(*words, cwd=tmp_path, expect=1, program=program)
    assert err.count(told) == 1
    assert f" in process 1 on {platform.node()}" in err
