"""`udaseg predict` at full size: 60 right masks beside 40 bad inputs, and kills at any moment."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import killed_predictions as kills
from tests.support.bad_inputs import write_bad, write_image
from tests.support.campaign import tell
from tests.support.predicting import digests
from udaseg.errors import PartialError

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("colors"),
    # pytest undoes the package's own filter
    pytest.mark.filterwarnings("ignore:Truncated File Read"),
]

SEED = 0


@pytest.mark.parametrize("seed", range(5))
def test_60_right_masks_beside_40_bad_inputs(tmp_path, seed):
    good = {}
    for number in range(60):
        path = tmp_path / "in" / f"{number % 7}" / f"{number:03d}.png"
        good[path] = write_image(path, 100 * seed + number, (20 + number % 5, 32))
    bad = [
        tmp_path / "in" / folder / name
        for part, folder in enumerate(("bad", "0"))
        for name in write_bad(tmp_path / "in" / folder, 2 * seed + part)
    ]
    before = digests(tmp_path / "in")
    with pytest.raises(PartialError, match="40 of 100 inputs failed"):
        kills.masks(tmp_path)
    with (tmp_path / "masks/failures.csv").open(newline="") as file:
        named = {Path(row["image"]): row["reason"] for row in csv.DictReader(file)}
    right = 0
    for path, labels in good.items():
        with Image.open(tmp_path / "masks/ids" / path.relative_to(tmp_path / "in")) as mask:
            right += bool((np.asarray(mask) == labels).all())
    masks = len(list((tmp_path / "masks/ids").rglob("*.png")))
    changed = sum(before[path] != digest for path, digest in digests(tmp_path / "in").items())
    tell(
        f"predict, 100 inputs: {right} of 60 masks right, {len(named)} of 40 bad inputs named, "
        f"{masks - 60} masks too many, {changed} inputs changed, seed {seed}"
    )
    assert (right, masks, changed) == (60, 60, 0)
    assert set(named) == set(bad)
    assert all(named.values())
    assert kills.hidden(tmp_path) == []


def test_200_kills_by_the_clock(tmp_path):
    kills.write_inputs(tmp_path, images=36, films=2)
    before = digests(tmp_path / "in")
    told = kills.campaign(tmp_path, 200, SEED)
    changed = digests(tmp_path / "in") != before
    tell(
        f"kills during predict: {told.kills}, {len(told.partial)} partial files under final names, "
        f"{len(told.wrong)} wrong files at the end, {told.temporary} kills left a temporary file "
        f"that the next run removed, inputs changed: {changed}; seed {SEED}, "
        f"bound 3/{told.kills} = {300 / told.kills:.2f} %"
    )
    assert told.kills == 200
    assert (told.partial, told.wrong, changed) == ([], [], False)


def test_a_kill_before_every_change_on_the_disk(tmp_path):
    kills.write_inputs(tmp_path, images=3, films=1)
    told = kills.at_every_change(tmp_path)
    tell(
        f"kills before each of {told.kills} changes on the disk: {len(told.partial)} partial files "
        f"under final names, {len(told.wrong)} wrong files at the end, {told.temporary} left a "
        "temporary file that the next run removed"
    )
    assert told.kills > 30
    assert (told.partial, told.wrong) == ([], [])
