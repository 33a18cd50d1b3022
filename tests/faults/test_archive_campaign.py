"""Hostile, cut, flipped and mutated archives: nothing lands outside, nothing damaged is taken."""

import logging
import random
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from tests.support import files, hostile
from tests.support.campaign import tell
from tests.support.hostile import packed, tree
from tests.support.measured import measured
from udaseg.data.archives.unpack import unpack
from udaseg.errors import DataError

pytestmark = pytest.mark.faults

SEED = 0
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


@pytest.fixture(autouse=True)
def quiet():
    """A tar without a checksum beside it is told each time."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _members(number=40):
    rng = np.random.default_rng(SEED)
    return {f"images/{n:03d}.png": rng.bytes(200 + 37 * n) for n in range(number)}


def _escaped(folder, before):
    """Return the files below `folder` that were not there, or have changed."""
    now = tree(folder)
    return sorted(name for name in now if now[name] != before.get(name, "missing"))


def test_hostile_archives_write_nothing_outside(tmp_path):
    outside = tmp_path / "world/outside"
    files.put(outside / "secret", b"secret")
    found = hostile.all_hostile(tmp_path / "made", outside)
    found.append(hostile.many_members_zip(tmp_path / "made/million.zip", 10**6, told=10**6))
    found.append(hostile.many_members_zip(tmp_path / "made/million-told-9.zip", 10**6, told=9))
    found.append(hostile.many_members_tar(tmp_path / "made/million.tar.gz", 10**6))
    deep = tmp_path / "world/in/deep"
    deep.mkdir(parents=True)
    before = tree(tmp_path / "world")
    rows = measured(
        found,
        f"unpack([path], Path({str(deep)!r}) / 'out')",
        imports="from udaseg.data.archives.unpack import unpack",
    )
    escaped = _escaped(tmp_path / "world", before)
    wrong = [path.name for path, error, said, *_ in rows if error != "DataError" or not said]
    slow = max(rows, key=lambda row: row[3])
    large = max(rows, key=lambda row: row[4])
    tell(
        f"hostile archives: {len(rows)}, {len(escaped)} files outside, {len(wrong)} not refused, "
        f"bound 3/{len(rows)} = {300 / len(rows):.1f} %; slowest {slow[3]:.1f} s ({slow[0].name}), "
        f"most memory {large[4]:.0f} MB ({large[0].name})"
    )
    assert len(rows) >= 75
    assert escaped == []
    assert wrong == []
    assert large[4] < 500


def test_a_naive_way_of_unpacking_would_escape(tmp_path):
    """Without this, a campaign that finds nothing would tell nothing."""
    outside = tmp_path / "world/outside"
    files.put(outside / "secret", b"secret")
    made = tmp_path / "made"
    made.mkdir()
    found = [*hostile.named(made, outside), *hostile.linked(made, outside)]
    escapes = 0
    for archive in found:
        # devices and a terabyte are not made, not even to show that they would be
        if archive.suffix != ".tar" or archive.stem in ("device", "block", "sparse", "long"):
            continue
        deep = tmp_path / "world/in/deep" / archive.stem
        deep.mkdir(parents=True)
        before = tree(tmp_path / "world")
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(deep, filter="fully_trusted")
        except (OSError, tarfile.TarError, ValueError, KeyError):
            pass
        inside = f"in/deep/{archive.stem}/"
        escapes += any(not name.startswith(inside) for name in _escaped(tmp_path / "world", before))
    tell(f"control: unpacking without a check escapes for {escapes} of these archives")
    assert escapes >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_cuts(tmp_path, kind):
    path = packed(tmp_path / f"x.{kind}", _members())
    data = path.read_bytes()
    used = len(data.rstrip(b"\0")) if kind == "tar" else len(data) - 1
    lengths = np.linspace(0, used, 199).astype(int).tolist()
    if kind == "tar":
        with tarfile.open(path) as opened:
            lengths += [member.offset for member in opened.getmembers()[1:]]
    missed = 0
    for length in lengths:
        path.write_bytes(data[:length])
        try:
            unpack([path], tmp_path / "out")
            missed += 1
        except DataError:
            missed += (tmp_path / "out").exists()
    tell(
        f"{kind} cut: {len(lengths)}, {missed} not refused, "
        f"bound 3/{len(lengths)} = {300 / len(lengths):.1f} %"
    )
    assert missed == 0


def test_flips_in_a_zip(tmp_path):
    members = _members()
    path = packed(tmp_path / "x.zip", members)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        starts = {entry.filename: entry.header_offset for entry in opened.infolist()}
    rng = random.Random(SEED)
    silent = harmless = named = inside = 0
    for bit in rng.sample(range(8 * len(data)), 400):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        hit = max((at, name) for name, at in starts.items() if at <= bit // 8)
        content = bit // 8 >= hit[0] + 30 + len(hit[1]) and bit // 8 < data.index(b"PK\1\2")
        inside += content
        try:
            unpack([path], tmp_path / "out")
        except DataError as error:
            silent += (tmp_path / "out").exists()
            named += content and hit[1] in str(error)
            continue
        harmless += 1
        unpacked = {path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
        silent += not unpacked <= set(members.values())
        shutil.rmtree(tmp_path / "out")
    tell(
        f"zip flips: 400, {silent} silent, {harmless} harmless (times, rights, names); of {inside} "
        f"in a member's content {named} name it; seed {SEED}, bound 3/400 = 0.75 %"
    )
    assert silent == 0
    assert named == inside


def _is_small(path):
    return path.stat().st_size < 100_000


def test_any_mutation_is_a_data_error(tmp_path):
    rng = random.Random(SEED)
    sound = [packed(tmp_path / f"x.{kind}", _members(6)) for kind in KINDS]
    bad = [path for path in hostile.all_hostile(tmp_path / "made", tmp_path) if _is_small(path)]
    whole = [(path.name.partition(".")[2], path.read_bytes()) for path in (*(sound * 40), *bad)]
    wrong, refused = [], 0
    for number in range(5000):
        kind, source = whole[number % len(whole)]
        data = bytearray(source)
        for _ in range(rng.randrange(1, 4)):
            if data:
                at = rng.randrange(len(data))
                size = rng.randrange(4)
                data[at : at + size] = rng.randbytes(rng.choice([size, size, rng.randrange(6)]))
        path = tmp_path / f"y.{kind}"
        path.write_bytes(bytes(data))
        try:
            unpack([path], tmp_path / "out")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        except DataError as error:
            refused += 1
            wrong += [] if str(path) in str(error) else [str(error)]
        except Exception as error:  # noqa: BLE001  # counted: none may come
            wrong.append(repr(error))
    tell(
        f"mutated archives: 5000, {refused} refused, {len(wrong)} with another error, seed {SEED}, "
        "bound 3/5000 = 0.06 %"
    )
    assert wrong == []
