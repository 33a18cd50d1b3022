"""Two real processes: a bad step on one rank is dropped on both."""

import pytest
import torch
import torch.multiprocessing

from tests.support.injections import PASSING, everything, inject, not_finite, tiny_fit, trained
from tests.support.ranks import found_by_each, joined
from udaseg.training.guards import Guard
from udaseg.training.setup import distribute

RANKS, STEPS = 2, 5
CASES = ("nowhere", "loss", "teacher projection")


def _case(place, rank):
    run = tiny_fit(steps=STEPS, seed=rank)
    for term in run.objective.regularizers.values():
        if hasattr(term, "min_confidence"):
            term.min_confidence = 1.1  # no loss counts these cells: only this rank can detect it
    object.__setattr__(run, "join_ranks", distribute(run.objective))
    if place in PASSING and rank == 1:
        inject(run, place, 2)
    guard = Guard(run)
    trained(run, guard=guard)
    return dict(guard.counts), everything(run)


def _rank(number, folder):
    with joined(number, folder, RANKS):
        torch.save({place: _case(place, number) for place in CASES}, folder / f"{number}.pt")


@pytest.mark.slow
def test_all_ranks_drop_a_step_together_and_stay_equal(tmp_path):
    one, other = found_by_each(_rank, tmp_path, RANKS)
    for place in CASES:
        expected = {} if place == "nowhere" else {"dropped_steps": 1}
        assert one[place][0] == other[place][0] == expected, place
        for name, value in one[place][1].items():
            assert torch.equal(value, other[place][1][name]), (place, name)
        assert not_finite(one[place][1]) == not_finite(other[place][1]) == []
