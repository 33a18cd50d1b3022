"""`torchrun -m udaseg adapt`: two processes on one run, messages once, restart after a kill."""

import shutil

import pytest
import torch

from tests.cli.test_fit import assert_same, tensors
from tests.support.torchrun import (
    adapt_words,
    kill,
    lines,
    started,
    status,
    torchrun,
    wait_for_step,
)
from tests.support.torchrun import ended as ends

EVERY_TWO = ["machine.checkpoint_every=2", "machine.keep_checkpoints=9"]
EVERY_TWO.append("method.teacher.batch_statistics=false")
STEPS = 6


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Return an uninterrupted run of two ranks and its output."""
    out = tmp_path_factory.mktemp("whole") / "run"
    output = torchrun(*adapt_words(root, out, *EVERY_TWO, steps=STEPS), cwd=out.parent)
    return out, output


@pytest.mark.slow
def test_two_processes_make_one_run_and_speak_with_one_voice(whole):
    run, (out, err) = whole
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    assert status(run)["state"] == "done"
    assert not (run / "writer.lock").exists()
    assert out.count("rccr: done, in") == 1
    assert err.count("M parameters") == 1
    assert "1 + 1 images in each of 2 processes" in err
    assert (run / "command.txt").read_text().startswith("torchrun --nnodes=1 --nproc-per-node=2")
    path = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    assert torch.load(path, weights_only=True)["processes"] == 2


@pytest.mark.slow
def test_a_resumed_run_of_two_ranks_ends_where_the_undisturbed_one_ends(root, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.stem[5:]) > 4:
            path.unlink()
    torchrun("adapt", "--resume", run, "--root", root, cwd=tmp_path)
    assert_same(tensors(run), tensors(whole[0]))
    assert lines(run) == lines(whole[0])


@pytest.mark.slow
def test_after_a_rank_is_killed_torchrun_starts_again_and_the_run_ends_the_same(
    root, whole, tmp_path
):
    run = tmp_path / "run"
    words = adapt_words(root, run, *EVERY_TWO, steps=STEPS)
    process = started(*words, cwd=tmp_path, restarts=1)
    wait_for_step(process, run, 3)
    kill(process, rank=1)
    _, err = ends(process)
    assert "torchrun restarted: resuming" in err
    assert_same(tensors(run), tensors(whole[0]))
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
