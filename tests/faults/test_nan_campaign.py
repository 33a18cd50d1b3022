"""NaN and infinity in every place of a training run, collapse alarms, and memory over time."""

import gc
import os
from pathlib import Path

import pytest

from tests.methods.test_self_training import _objective
from tests.support.campaign import tell
from tests.support.injections import (
    PASSING,
    PLACES,
    alarms_of,
    biased,
    campaign,
    easy_batch,
    tiny_fit,
)
from tests.support.injections import trained as train

pytestmark = pytest.mark.faults

SEEDS = (0, 1, 2)
STEPS = 8
AT = (1, 4, 7)


def test_nan_in_every_place_at_three_steps_with_three_seeds():
    trials, failed = campaign(seeds=SEEDS, steps=STEPS, at=AT, values=[float("nan")])
    tell(
        f"NaN injections: {trials - len(failed)} of {trials} recovered bit for bit "
        f"({len(PLACES)} places x steps {AT} x seeds {SEEDS}); with 0 failures the 95 % bound of "
        f"the failure rate is 3/{trials} = {100 * 3 / trials:.1f} %"
    )
    assert trials == len(PLACES) * len(AT) * len(SEEDS)
    assert failed == []


def test_infinity_in_every_place():
    trials, failed = campaign(seeds=SEEDS[:1], steps=STEPS, at=AT, values=[float("inf")])
    tell(
        f"infinity injections: {trials - len(failed)} of {trials} recovered bit for bit, seed "
        f"{SEEDS[0]}; bound 3/{trials} = {100 * 3 / trials:.1f} %"
    )
    assert failed == []


def test_a_collapse_is_told_in_200_steps_and_three_clean_runs_raise_no_alarm():
    settings = {"make": easy_batch, "lr": 3e-3}
    clean = [
        alarms_of(tiny_fit(objective=_objective(), steps=500, seed=seed, **settings))
        for seed in SEEDS
    ]
    told = []
    for seed in SEEDS:
        run = tiny_fit(objective=_objective(), steps=200, seed=seed, **settings)
        biased(run)
        told.append(next((done for done, kind in alarms_of(run) if kind == "one_class"), None))
    tell(f"collapse: told at steps {told} with a biased teacher; false alarms {clean}")
    assert clean == [[], [], []]
    assert all(done is not None and done <= 200 for done in told)


def test_memory_does_not_grow_over_2000_steps():
    """Guards, copies and watches hold what they need from the start."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        pytest.skip("needs /proc")
    page, seen = os.sysconf("SC_PAGE_SIZE"), {}
    run = tiny_fit(steps=2200)

    def on_step(done, _):
        if done in (200, 2200):
            gc.collect()
            seen[done] = int(status.read_text().split()[1]) * page / 1e6

    train(run, on_step=on_step)
    growth = seen[2200] - seen[200]
    tell(f"memory: {growth:+.1f} MB over 2,000 steps after 200 of warm-up (bound 20 MB)")
    assert growth < 20


def test_the_ten_places_of_the_plan_and_one_more_are_there():
    assert len(PASSING) == 8
    assert len(PLACES) == 11
