"""Checkpoint faults: a few trials of each campaign of `make faults`."""

import pytest

from tests.support import crashes
from udaseg.errors import CheckpointError


def test_a_kill_while_saving_loses_nothing_that_was_told(tmp_path):
    result = crashes.killed_while_saving(tmp_path, 6, seed=0)
    assert result.kills == 6
    assert result.lost == []


def test_a_kill_before_any_change_on_the_disk_loses_nothing(tmp_path):
    result = crashes.killed_at_every_change(tmp_path, 8)
    assert result.kills == 8
    assert result.lost == []


def test_cuts_and_flips_are_refused_and_the_one_before_is_taken(tmp_path, caplog):
    trials, wrong = crashes.unnoticed_damage(tmp_path, 15, 25, seed=0)
    assert (trials, wrong) == (40, [])


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    kinds = list(crashes.of_another_kind(tmp_path))
    assert len(kinds) > 35
    for what, act in kinds:
        try:
            act()
        except CheckpointError as error:
            assert "step-000001.pt" in str(error), what
        else:
            pytest.fail(f"{what}: was taken")
