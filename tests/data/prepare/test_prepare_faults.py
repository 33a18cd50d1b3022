"""`prepare` with damaged files, killed processes and sources that must not change."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.support import damage, files, kills
from tests.support.own import forms, own_set, state
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions

LABEL = files.gray_png(np.zeros((30, 40), int))


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_cut_image_is_always_named(tmp_path, kind):
    cut = damage.cuts(damage.image(kind), 20)
    form = damage.suffix(kind)
    assert damage.unnoticed(tmp_path, cut, form, label=False, whole=LABEL) == 0


def test_the_count_of_the_unnoticed_can_tell_a_whole_image(tmp_path):
    sound = [damage.image("rgb png")] * 3
    assert damage.unnoticed(tmp_path, sound, "png", label=False, whole=LABEL) == 3


@pytest.mark.parametrize("size", [(30, 40), (90, 120)])
def test_a_flipped_bit_in_a_label_is_always_named(tmp_path, size):
    ids = np.random.default_rng(0).integers(0, 4, size)
    flipped = damage.flips(files.palette_png(ids), 40, seed=0)
    whole = files.image_png(*size)
    assert damage.unnoticed(tmp_path, flipped, "png", label=True, whole=whole) == 0


def test_what_is_no_image_is_named_and_nothing_hangs(tmp_path):
    yaml = own_set(tmp_path / "mine")
    strange = damage.strange(tmp_path / "mine/images")
    for path in strange.values():
        label = tmp_path / "mine/labels" / path.name
        if not path.is_dir():
            files.put(label, files.gray_png(np.zeros((6, 8), int)))
    report = prepare_dataset(
        str(yaml), root=tmp_path / "data", options=PrepareOptions(max_bad=len(strange))
    )
    named = {Path(line.split(": ")[0]).name: line.partition(": ")[2] for line in report.bad}
    unseen = {"folder.png"}  # globs match files only
    if os.geteuid() == 0:
        unseen.add("unreadable.png")  # root can read it anyway
    assert set(named) == {path.name for path in strange.values()} - unseen
    for name, reason in (
        ("empty.png", "is empty"),
        ("text.png", "is not a readable image"),
        ("dangling.png", "is a broken link"),
        ("pipe.png", "is not a regular file"),
        ("large.png", "2.1 GB; too large for an image"),
    ):
        assert named[name] == reason
    assert len(report.dataset.splits["train"]) == 5 + len(unseen) - 1


def test_bombs_are_refused_from_their_header(tmp_path):
    rows = damage.measured_bombs(tmp_path / "mine/images")
    assert len(rows) == 6
    for path, error, message, _, peak in rows:
        assert (error, message) == ("", ""), path
        assert peak < 200, path


@pytest.mark.parametrize("shape", [(1, 40_000), (40_000, 1)])
def test_a_very_narrow_image_is_read(tmp_path, shape):
    mine = tmp_path / "mine"
    files.put(mine / "images/a.png", files.image_png(*shape))
    files.put(mine / "labels/a.png", files.gray_png(np.zeros(shape, int)))
    text = "name: own\nimages: images/*\nlabels: labels/*\nclasses: [a]\n"
    report = prepare_dataset(str(files.dataset_yaml(mine, text)), root=tmp_path / "data")
    assert report.dataset.splits["train"][0].class_pixels == (40_000,)


# kills


def test_after_a_kill_at_any_change_on_the_disk_the_next_run_makes_the_same_tree(tmp_path):
    kills.archived_set(tmp_path, parts=1, pairs=2)
    result = kills.at_every_change(tmp_path, every=7)
    assert result.wrong == []
    assert result.kills >= 8
    assert {"while unpacking", "while reading pairs"} <= set(result.stages)


def test_after_a_kill_while_a_set_is_replaced_the_next_run_makes_the_same_tree(tmp_path):
    kills.archived_set(tmp_path, parts=1, pairs=2)
    result = kills.at_every_change_of_a_second_run(tmp_path, every=5)
    assert result.wrong == []
    assert result.kills >= 5


def test_after_kills_by_the_clock_the_next_run_makes_the_same_tree(tmp_path):
    kills.archived_set(tmp_path, parts=2)
    result = kills.campaigns(tmp_path, 1, 4, seed=0)
    assert (result.kills, result.wrong) == (4, [])


def test_two_processes_at_once_make_one_sound_set(tmp_path):
    kills.archived_set(tmp_path, parts=1)
    calm, _ = kills.calm_run(tmp_path)
    assert kills.at_once(tmp_path, 2) == [0, 0]
    assert kills.result(tmp_path) == calm


# the user's files


@pytest.mark.parametrize("name", ["gta5", "synthia", "mine"])
def test_the_source_is_never_written_even_where_that_is_forbidden(tmp_path, name):
    word = forms(tmp_path)[name]
    folders = [path for path in (tmp_path / name).rglob("*") if path.is_dir()]
    for folder in (*folders, tmp_path / name):
        folder.chmod(0o555)
    before = state(tmp_path / name)
    times = {folder: folder.stat().st_mtime_ns for folder in folders}
    try:
        prepare_dataset(word, root=tmp_path)
        prepare_dataset(word, root=tmp_path, options=PrepareOptions(on_mismatch="resize"))
    finally:
        for folder in (*folders, tmp_path / name):
            folder.chmod(0o755)
    assert state(tmp_path / name) == before
    assert {folder: folder.stat().st_mtime_ns for folder in folders} == times


def test_prepared_labels_are_files_of_their_own(tmp_path):
    """Prepared labels are no links: writing to them must not change the user's files."""
    folder = prepare_dataset(str(own_set(tmp_path / "mine")), root=tmp_path / "data").dataset.folder
    for path in (folder / "labels").rglob("*.png"):
        assert not path.is_symlink()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert path.stat().st_nlink == 1


def test_a_prepared_folder_that_cannot_be_written_is_enough_when_nothing_changed(
    tmp_path, monkeypatch
):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")

    def refused(*_):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr("udaseg.data.prepare.prepare.file_lock", refused)
    assert prepare_dataset(str(yaml), root=tmp_path / "data").unchanged
