"""Signals in every phase of a run, to the process and to its group, once and twice."""

import signal

import pytest

from tests.support.campaign import tell
from tests.support.stops import PHASES, SIGNALS, Stop, golden, problem

pytestmark = pytest.mark.faults

AT_WORK = ("first batch", "train", "save")


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    return golden(root, tmp_path_factory.mktemp("whole") / "run")


def failures(stops, root, folder, whole):
    """Return (trials, what went wrong)."""
    found = []
    for number, stop in enumerate(stops):
        wrong = problem(stop, root, folder / str(number), whole)
        if wrong:
            found.append(f"{stop}: {wrong}")
    return len(stops), found


def test_36_signals_in_six_phases_to_process_and_group(root, whole, tmp_path):
    stops = [
        Stop(p, group, number) for p in PHASES for group in (False, True) for number in SIGNALS
    ]
    trials, wrong = failures(stops, root, tmp_path, whole)
    tell(
        f"signals: {trials - len(wrong)} of {trials} saved or broken off with the right code and "
        f"resumed to the same bits ({', '.join(PHASES)} x process, group x SIGINT, SIGTERM, "
        f"SIGHUP); seed 0, {len(wrong)} failures, bound 3/{trials} = {300 / trials:.1f} %"
    )
    assert trials == 36
    assert wrong == []


def test_a_second_signal_ends_at_once_and_the_checkpoint_before_stands(root, whole, tmp_path):
    stops = [
        Stop(phase, group=False, number=number, again=True)
        for phase in ("train", "save")
        for number in (signal.SIGINT, signal.SIGTERM)
    ]
    trials, wrong = failures(stops, root, tmp_path, whole)
    tell(f"second signals: {trials - len(wrong)} of {trials} ended at once and resumed; seed 0")
    assert wrong == []


def test_loader_processes_that_die_before_the_signal_comes(root, whole, tmp_path):
    stops = [Stop("train", group=False, number=number, first=True, workers=2) for number in SIGNALS]
    trials, wrong = failures(stops, root, tmp_path, whole)
    tell(f"loaders dead before the signal: {trials - len(wrong)} of {trials} saved and resumed")
    assert wrong == []
