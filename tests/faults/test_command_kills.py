"""Kills of the commands that begin, replace, compare, show and export runs."""

from functools import partial

import pytest

import udaseg
from tests.support import command_kills as kills
from tests.support.campaign import tell

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("quiet")]


@pytest.fixture(scope="module")
def base(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    assert kills.in_child(partial(kills.train, root, run))[0] == 0
    return run


def _check(told, number, name):
    tell(
        f"kills during {name}: {told.kills} of {number} before it had ended, seed 0; "
        f"{len(told.wrong)} from which one command did not go on to the same result"
    )
    assert told.wrong == []
    assert told.kills == number


def test_kills_during_overwrite(root, base, tmp_path):
    _check(kills.of_training(root, base, tmp_path, 30, overwrite=True), 30, "train --overwrite")


def test_kills_during_init(root, base, tmp_path):
    _check(kills.of_training(root, base, tmp_path, 30, overwrite=False), 30, "train --init")


def test_kills_during_report(base, tmp_path):
    _check(kills.of_reading(base, tmp_path, 60, partial(udaseg.report, images=0)), 60, "report")


def test_kills_during_select(root, base, tmp_path):
    options = udaseg.SelectOptions(images=1, root=root, device="cpu")
    act = partial(udaseg.select, options=options)
    _check(kills.of_reading(base, tmp_path, 30, act), 30, "select")


def test_kills_during_calibrate(root, base, tmp_path):
    act = partial(udaseg.calibrate, images=1, root=root, device="cpu")
    _check(kills.of_reading(base, tmp_path, 40, act), 40, "calibrate")


def test_kills_during_export(base, tmp_path):
    # a kill after the last change leaves the finished file, which is not replaced unasked
    act = partial(udaseg.export, images=0, overwrite=True)
    _check(kills.of_reading(base, tmp_path, 10, act), 10, "export")
