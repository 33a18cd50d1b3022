"""Damaged images and labels at full size: every one is named, by `prepare` or by `--verify`."""

import os
import random

import numpy as np
import pytest

from tests.support import damage, files
from tests.support.campaign import tell
from tests.support.own import own_set
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.data.prepare.verify import verify_dataset

pytestmark = pytest.mark.faults

SEED = 0


def test_995_cut_images(tmp_path):
    label = files.gray_png(np.zeros((60, 80), int))
    missed = {}
    for kind in damage.KINDS:
        cut = damage.cuts(damage.image(kind, 60, 80), 199)
        form = damage.suffix(kind)
        folder = tmp_path / kind.replace(" ", "-")
        missed[kind] = damage.unnoticed(folder, cut, form, label=False, whole=label)
    total = 199 * len(missed)
    tell(f"cut images: {total}, not named {missed}, bound 3/{total} = {300 / total:.2f} %")
    assert total == 995
    assert set(missed.values()) == {0}


@pytest.mark.parametrize("size", [(60, 80), (1052, 1914)])
def test_400_flips_in_a_label(tmp_path, size):
    blocks = np.random.default_rng(SEED).integers(0, 4, (size[0] // 8 + 1, size[1] // 8 + 1))
    ids = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    flipped = damage.flips(files.palette_png(ids), 400, SEED)
    whole = files.image_png(*size)
    missed = damage.unnoticed(tmp_path, flipped, "png", label=True, whole=whole)
    tell(
        f"flips in a label of {size[1]}x{size[0]}: 400, {missed} not named, seed {SEED}, "
        "bound 3/400 = 0.75 %"
    )
    assert missed == 0


def test_flips_in_jpegs_after_indexing(tmp_path):
    yaml = own_set(tmp_path / "mine", 50, size=(60, 80), form="jpg")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    rng = random.Random(SEED)
    for path in sorted((tmp_path / "mine/images").iterdir()):
        data, when = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        os.utime(path, ns=(when, when))
    decoded = prepare_dataset(
        str(yaml), root=tmp_path / "again", options=PrepareOptions(max_bad=50)
    )
    found = len(verify_dataset("own", root=tmp_path / "data").changed)
    tell(
        f"flips in JPEGs after indexing: 50, {50 - found} not found by --verify "
        f"(decoding alone finds {len(decoded.bad)}), seed {SEED}, bound 3/50 = 6 %"
    )
    assert found == 50


def test_bombs(tmp_path):
    rows = damage.measured_bombs(tmp_path)
    slow, large = max(row[3] for row in rows), max(row[4] for row in rows)
    tell(f"image bombs: {len(rows)}, 0 taken; slowest {slow:.2f} s, most memory {large:.0f} MB")
    assert len(rows) == 6
    assert large < 200
