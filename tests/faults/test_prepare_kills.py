"""Killing `prepare`: by the clock, before every change on the disk, and several at once."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import kills
from tests.support.campaign import tell
from tests.support.own import forms, own_set, state
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.data.prepare.verify import verify_dataset
from udaseg.errors import EnvironmentFault

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("quiet")]

SEED = 0


def test_400_kills_by_the_clock(tmp_path):
    kills.archived_set(tmp_path, parts=4, pairs=8, size=(120, 160))
    told = kills.campaigns(tmp_path, 50, 8, SEED)
    tell(
        f"kills during prepare: {told.kills} in 50 campaigns, {len(told.wrong)} wrong files, "
        f"seed {SEED}, bound 3/{told.kills} = {100 * 3 / told.kills:.2f} %; {told.stages}"
    )
    assert told.kills == 400
    assert told.wrong == []


def test_a_kill_before_every_change_on_the_disk(tmp_path):
    kills.archived_set(tmp_path, parts=2, pairs=3)
    told = kills.at_every_change(tmp_path)
    tell(
        f"kills before each of {told.kills} changes on the disk: {len(told.wrong)} wrong files; "
        f"{told.stages}"
    )
    assert told.kills > 100
    assert told.wrong == []


def test_a_kill_before_every_change_while_a_set_is_replaced(tmp_path):
    kills.archived_set(tmp_path, parts=1, pairs=6)
    told = kills.at_every_change_of_a_second_run(tmp_path)
    tell(
        f"kills before each of {told.kills} changes while a set is replaced: {len(told.wrong)} "
        f"wrong files; {told.stages}"
    )
    assert told.stages["while replacing the folder"] > 0
    assert told.wrong == []


def test_processes_at_once(tmp_path):
    kills.archived_set(tmp_path, parts=2)
    calm, _ = kills.calm_run(tmp_path)
    failures = 0
    for _ in range(20):
        codes = kills.at_once(tmp_path, 3)
        failures += codes != [0, 0, 0] or kills.result(tmp_path) != calm
        kills.clear(tmp_path)
    tell(f"three processes at once: 20 trials, {failures} failures, bound 3/20 = 15 %")
    assert failures == 0


@pytest.fixture
def small_disk():
    """A disk of its own that can be made larger."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def _resized(folder, kb):
    subprocess.run(["mount", "-o", f"remount,size={kb}k", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["archives", "folders"])
def test_a_disk_that_is_full_midway(small_disk, tmp_path, kind):
    if kind == "archives":
        name, root = "gta5", small_disk / "data"
        kills.archived_set(tmp_path, parts=2, pairs=8, size=(60, 80))
        root.mkdir()
        for archive in tmp_path.glob("*.zip"):
            (root / archive.name).symlink_to(archive)
        sizes = (20, 100, 300, 340, 400)
    else:
        name = str(own_set(tmp_path / "mine", pairs=60, size=(90, 120)))
        root, sizes = small_disk / "data", (12, 40, 80, 120, 160)
    _resized(small_disk, 4000)
    prepare_dataset(name, root=root)
    calm = {n: facts[0] for n, facts in state(root).items()}
    failures = refused = kept = lost = 0
    for kb in sizes:
        for folder in ("unpacked", "prepared"):
            shutil.rmtree(root / folder, ignore_errors=True)
        _resized(small_disk, kb)
        try:
            prepare_dataset(name, root=root, options=PrepareOptions(workers=1))
        except EnvironmentFault as error:
            refused += 1
            failures += "are still to be written" not in str(error)
            failures += (root / "prepared" / Path(name).stem).exists()
            done = _finished(root)
            _resized(small_disk, 4000)
            prepare_dataset(name, root=root, options=PrepareOptions(workers=1))
            lost += len(done - _finished(root))
            kept += len(done)
        failures += {n: facts[0] for n, facts in state(root).items()} != calm
    tell(
        f"disk full, {kind}: {len(sizes)} sizes, {refused} refused with exit 5, {failures} "
        f"failures; of {kept} finished files {lost} were written again"
    )
    assert refused >= 4
    assert (failures, lost) == (0, 0)
    assert kept > 0


def _finished(root):
    """Return the inodes of unpacked files and prepared labels: written again, they are others."""
    return {path.stat().st_ino for path in root.rglob("*.png") if not path.name.startswith(".")}


@pytest.mark.parametrize("name", ["gta5", "synthia", "mine"])
def test_a_source_that_cannot_be_written(small_disk, tmp_path, name):
    word = forms(small_disk)[name]
    before = state(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    if name != "mine":
        (tmp_path / name).symlink_to(small_disk / name)
    report = prepare_dataset(word, root=tmp_path)
    tell(f"read-only source {name}: {len(report.dataset.splits['train'])} images prepared")
    assert state(small_disk) == before
    assert verify_dataset(word, root=tmp_path).changed == []
