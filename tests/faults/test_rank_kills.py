"""Killing ranks of a run: with restarts it ends the same, without it ends and can go on."""

import random
import time

import pytest

from tests.cli.test_fit import assert_same, tensors
from tests.support import torchrun as command
from tests.support.campaign import tell
from udaseg.runs.checkpoint import newest_checkpoint

pytestmark = pytest.mark.faults

SEED, STEPS = 0, 12
RESTARTED, ALONE = 20, 10
SOON_S = 60
WORDS = ["machine.checkpoint_every=3", "method.teacher.batch_statistics=false"]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Return a run of two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    command.torchrun(*command.adapt_words(root, out, *WORDS, steps=STEPS), cwd=out.parent)
    return out


def _killed(root, folder, rng, restarts):
    """Start a run, kill one of its ranks at a random step, and return process, run and rank."""
    run, rank = folder / "run", rng.randrange(2)
    folder.mkdir()
    words = command.adapt_words(root, run, *WORDS, steps=STEPS)
    process = command.started(*words, cwd=folder, restarts=restarts)
    command.wait_for_step(process, run, rng.randrange(1, STEPS - 2))
    time.sleep(rng.uniform(0, 0.2))
    command.kill(process, rank)
    return process, run, rank


def test_killed_ranks_are_started_again_and_the_run_ends_the_same(root, whole, tmp_path):
    rng, hit = random.Random(SEED), [0, 0]
    for trial in range(RESTARTED):
        process, run, rank = _killed(root, tmp_path / str(trial), rng, restarts=1)
        command.ended(process)
        assert_same(tensors(run), tensors(whole))
        assert [line["step"] for line in command.lines(run)] == list(range(1, STEPS + 1))
        hit[rank] += 1
    tell(
        f"rank kills with a restart: {RESTARTED}/{RESTARTED} ended as the undisturbed run, by rank "
        f"{hit}, seed {SEED}, bound 3/{RESTARTED} = {300 / RESTARTED:.0f} %"
    )


def test_without_restarts_both_end_soon_and_the_run_can_go_on(root, whole, tmp_path):
    rng, longest, cut = random.Random(SEED + 1), 0.0, []
    for trial in range(ALONE):
        process, run, rank = _killed(root, tmp_path / str(trial), rng, restarts=0)
        begun = time.monotonic()
        _, err = command.ended(process, expect=1)
        longest = max(longest, time.monotonic() - begun)
        if rank == 1:
            assert command.status(run)["state"] == "failed"
            assert err.count("another process of the run has ended") == 1
        # a first rank that is killed while it writes leaves a part, which the next save sweeps
        left = list((run / "checkpoints").glob("*.tmp"))
        assert rank == 0 or not left
        cut += [run] if left else []
        if list((run / "checkpoints").glob("step-*.json")):  # else it was in its first one
            assert newest_checkpoint(run / "checkpoints") is not None
    for again in dict.fromkeys([*cut, run]):
        command.torchrun("adapt", "--resume", again, "--root", root, cwd=tmp_path)
        assert_same(tensors(again), tensors(whole))
        assert not list((again / "checkpoints").glob("*.tmp"))
    assert longest < SOON_S
    tell(
        f"rank kills without a restart: {ALONE}/{ALONE} ended, the longest after {longest:.1f} s, "
        f"{len(cut)} in the middle of a checkpoint, "
        f"seed {SEED + 1}, bound 3/{ALONE} = {300 / ALONE:.0f} %"
    )
