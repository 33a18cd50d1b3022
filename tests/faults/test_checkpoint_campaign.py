"""Checkpoints: killed while saving, damaged, of another kind, resumed anywhere, parts left out."""

import random
import shutil

import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, tensors
from tests.support import crashes
from tests.support.campaign import tell
from udaseg.errors import CheckpointError

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("quiet")]

SEED = 0
STEPS = 6
OFTEN = ["machine.checkpoint_every=1", "machine.keep_checkpoints=9", "machine.log_every=1"]


def test_200_kills_while_saving(tmp_path):
    told = crashes.killed_while_saving(tmp_path, 200, SEED)
    tell(
        f"kills while saving: {told.kills}, {len(told.lost)} lost, seed {SEED}, bound "
        f"3/{told.kills} = {300 / told.kills:.1f} %; {told.leftovers} temporary files were left "
        "behind and swept by the next save"
    )
    assert told.kills == 200
    assert told.lost == []


def test_a_kill_before_each_change_on_the_disk(tmp_path):
    told = crashes.killed_at_every_change(tmp_path, 40)
    tell(
        f"kills before each change on the disk of saving and pruning: {told.kills} of 40, "
        f"{len(told.lost)} lost"
    )
    assert told.kills == 40
    assert told.lost == []


def test_599_damaged_checkpoints(tmp_path):
    trials, wrong = crashes.unnoticed_damage(tmp_path, 199, 400, SEED)
    tell(
        f"damaged checkpoints: {trials - len(wrong)} of {trials} refused (199 cuts, 400 flips), "
        f"the one before taken, seed {SEED}, bound 3/{trials} = {300 / trials:.1f} %"
    )
    assert trials == 599
    assert wrong == []


def test_damaged_manifests(tmp_path):
    trials, wrong = crashes.unnoticed_damage_of_manifests(tmp_path, SEED)
    tell(f"damaged manifests: {trials}, {len(wrong)} let other weights be read")
    assert wrong == []


def test_checkpoints_of_another_kind(tmp_path):
    taken, trials = [], 0
    for what, act in crashes.of_another_kind(tmp_path):
        trials += 1
        try:
            act()
        except CheckpointError:
            continue
        taken.append(what)
    tell(
        f"checkpoints of another kind: {trials - len(taken)} of {trials} refused (keys, formats, "
        "names, shapes, order of parameters)"
    )
    assert taken == []


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Return a run with bank and prototypes that kept every step's checkpoint."""
    out = tmp_path_factory.mktemp("whole") / "run"
    adapt(root, out, *OFTEN, "validation.data=null", method="rccr_spcl", steps=STEPS)
    return out


def test_20_golden_resumes(root, whole, tmp_path):
    rng, wanted, failed = random.Random(SEED), tensors(whole), []
    metrics = (whole / "metrics.jsonl").read_text()
    for trial in range(20):
        out, step, workers = tmp_path / str(trial), rng.randrange(1, STEPS), 2 * (trial % 2)
        shutil.copytree(whole, out)
        for path in (out / "checkpoints").glob("step-*"):
            if int(path.stem[5:]) > step:
                path.unlink()
        udaseg("adapt", "--resume", out, "--root", root, "--workers", workers, cwd=tmp_path)
        found = tensors(out)
        if found.keys() != wanted.keys() or not all(found[n].equal(wanted[n]) for n in wanted):
            failed.append(f"from step {step} with {workers} workers: tensors differ")
        if (out / "metrics.jsonl").read_text() != metrics:
            failed.append(f"from step {step} with {workers} workers: metrics differ")
        shutil.rmtree(out)
    tell(
        f"golden resume: {20 - len(failed)} of 20 bit-exact in all {len(wanted)} tensors and every "
        f"line of metrics (random steps x 0 and 2 workers), seed {SEED}, bound 3/20 = 15 %"
    )
    assert failed == []


def test_every_item_of_a_state_that_is_left_out_is_noticed():
    trials, unnoticed, anew = crashes.left_out_and_unnoticed()
    tell(
        f"state items left out: {trials - len(unnoticed) - len(anew)} of {trials} noticed by other "
        f"bits at the end; {len(anew)} are made anew from others in each step: {anew}"
    )
    assert unnoticed == []
    # the teacher takes the student's counters over at each step
    assert all(
        name.startswith("teacher.") and name.endswith("num_batches_tracked") for name in anew
    )
