"""Repeated `prepare`: only changed files are read, and output of interrupted runs is reused."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.support import files
from tests.support.own import own_set, put_label, state
from udaseg.data.files import images as images_file
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.prepare.convert import convert_pair
from udaseg.data.prepare.manifest import read_manifest
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.data.prepare.verify import verify_dataset
from udaseg.errors import DataError, EnvironmentFault
from udaseg.files import file_lock


@pytest.fixture
def reads(monkeypatch):
    """Record the keys of the pairs that are read."""
    keys = []

    def noted(pair, *how):
        keys.append(pair.key)
        return convert_pair(pair, *how)

    monkeypatch.setattr("udaseg.data.prepare.convert.convert_pair", noted)
    return keys


def _prepared(tmp_path):
    return state(tmp_path / "data/prepared/own")


def _fresh(tmp_path, yaml, **how):
    """Return the output of a run from scratch in the same folder."""
    shutil.rmtree(tmp_path / "data")
    prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(**how))
    return _prepared(tmp_path)


def _labels_only(entries):
    return {name: facts for name, facts in entries.items() if name.startswith("labels")}


def _content(entries):
    return {name: digest for name, (digest, *_) in entries.items()}


@pytest.mark.parametrize(
    "change",
    [
        "gone",
        "cut",
        "edited",
        "source label",
        "source image",
        "new",
        "removed",
        "index",
        "manifest",
    ],
)
def test_only_what_changed_is_read_again(tmp_path, reads, change):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    before = _prepared(tmp_path)
    done, mine = tmp_path / "data/prepared/own", tmp_path / "mine"
    reads.clear()
    expected = ["2"]
    if change == "gone":
        (done / "labels/train/2.png").unlink()
    elif change == "cut":
        files.put(done / "labels/train/2.png", (done / "labels/train/2.png").read_bytes()[:-9])
    elif change == "edited":
        data = bytearray((done / "labels/train/2.png").read_bytes())
        data[-20] ^= 1
        files.put(done / "labels/train/2.png", bytes(data))
    elif change == "source label":
        put_label(mine, 2, seed=99)
    elif change == "source image":
        files.put(mine / "images/2.png", files.image_png(6, 8, 99))
    elif change == "new":
        files.put(mine / "images/9.png", files.image_png(6, 8, 9))
        put_label(mine, 9)
        expected = ["9"]
    elif change == "removed":
        (mine / "images/2.png").unlink()
        (mine / "labels/2.png").unlink()
        expected = []
    elif change == "index":
        files.put(done / "index.json", (done / "index.json").read_bytes()[:-9])
        expected = []
    else:
        (done / "manifest.jsonl").unlink()
        expected = ["0", "1", "2", "3", "4"]
    report = prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(workers=1))
    assert reads == expected
    assert report.read == len(expected)
    after = _prepared(tmp_path)
    others = {name for name in _labels_only(before) if name not in ("labels/train/2.png",)}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    fresh = _fresh(tmp_path, yaml)
    assert _content(after) == _content(fresh)
    assert _labels_only(after) == _labels_only(fresh)
    assert prepare_dataset(str(yaml), root=tmp_path / "data").unchanged


@pytest.mark.parametrize("change", ["classes", "mismatch"])
def test_what_decides_over_every_label_has_all_of_them_made_again(tmp_path, reads, change):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    reads.clear()
    if change == "classes":
        yaml.write_text(yaml.read_text().replace("[a, b, c]", "[b, a, c]"))
    rule = {"on_mismatch": "resize"} if change == "mismatch" else {}
    prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(**rule))
    assert len(reads) == 5
    assert _content(_prepared(tmp_path)) == _content(_fresh(tmp_path, yaml, **rule))


def test_a_look_that_changes_nothing_reads_no_image(tmp_path, reads, monkeypatch):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    monkeypatch.setattr(images_file, "read_bytes", None)
    before = _prepared(tmp_path)
    assert prepare_dataset(str(yaml), root=tmp_path / "data").unchanged
    assert _prepared(tmp_path) == before


def test_where_the_disk_has_no_hard_links_labels_are_copied(tmp_path, reads, monkeypatch):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    before = _prepared(tmp_path)
    reads.clear()
    put_label(tmp_path / "mine", 2, seed=99)

    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert reads == ["2"]
    after = _prepared(tmp_path)
    assert after["labels/train/1.png"] == before["labels/train/1.png"]


def test_a_cache_stays_while_labels_mean_the_same(tmp_path):
    yaml = own_set(tmp_path / "mine")
    root = tmp_path / "data"
    write_cache(prepare_dataset(str(yaml), root=root).dataset, (3, 4))
    put_label(tmp_path / "mine", 2, seed=99)
    assert write_cache(prepare_dataset(str(yaml), root=root).dataset, (3, 4)).written == 1
    yaml.write_text(yaml.read_text().replace("[a, b, c]", "[b, a, c]"))
    assert write_cache(prepare_dataset(str(yaml), root=root).dataset, (3, 4)).written == 5


# interrupted runs


def test_a_failure_leaves_the_last_good_state_and_the_next_run_reads_the_rest_only(tmp_path, reads):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    before = _prepared(tmp_path)
    put_label(tmp_path / "mine", 1, seed=98)
    files.put(tmp_path / "mine/labels/2.png", b"broken")
    with pytest.raises(DataError):
        prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(workers=1))
    assert _prepared(tmp_path) == before
    put_label(tmp_path / "mine", 2, seed=99)
    reads.clear()
    prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(workers=1))
    assert reads == ["2"]
    assert sorted(p.name for p in (tmp_path / "data/prepared").iterdir()) == [".own.lock", "own"]
    assert _content(_prepared(tmp_path)) == _content(_fresh(tmp_path, yaml))


def test_what_a_failure_left_goes_when_its_cause_is_taken_back(tmp_path):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    (tmp_path / "mine/labels/2.png").rename(tmp_path / "label")
    files.put(tmp_path / "mine/labels/2.png", b"broken")
    with pytest.raises(DataError):
        prepare_dataset(str(yaml), root=tmp_path / "data")
    (tmp_path / "label").rename(tmp_path / "mine/labels/2.png")
    assert prepare_dataset(str(yaml), root=tmp_path / "data").unchanged
    assert sorted(p.name for p in (tmp_path / "data/prepared").iterdir()) == [".own.lock", "own"]


def test_an_interrupt_ends_it_soon_and_the_next_run_goes_on(tmp_path, monkeypatch, reads):
    yaml = own_set(tmp_path / "mine", pairs=40)
    seen = []

    def slow(*job):
        reads.append(job)
        time.sleep(0.01)
        return convert_pair(*job)

    monkeypatch.setattr("udaseg.data.prepare.convert.convert_pair", slow)

    def stop(done, total):
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    root = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(str(yaml), root=root, options=PrepareOptions(workers=1), on_progress=stop)
    assert seen == [(0, 40), (1, 40), (2, 40), (3, 40)]
    assert len(reads) < 40  # jobs that had not started were cancelled
    assert not (root / "prepared/own").exists()
    reads.clear()
    assert prepare_dataset(str(yaml), root=root).read == len(reads) == 37


@pytest.mark.parametrize(
    "left", ["torn line", "torn label", "other meaning", "no journal", "rubbish"]
)
def test_what_a_killed_run_left_is_used_as_far_as_it_is_sound(tmp_path, reads, left):
    yaml = own_set(tmp_path / "mine")
    root = tmp_path / "data"
    files.put(tmp_path / "mine/labels/4.png", b"broken")
    with pytest.raises(DataError):
        prepare_dataset(str(yaml), root=root, options=PrepareOptions(workers=1))
    put_label(tmp_path / "mine", 4)
    journal, place = root / "prepared/.own.journal", root / "prepared/.own.tmp"
    expected = ["4"]
    if left == "torn line":
        journal.write_bytes(journal.read_bytes()[:-20])
        expected = ["3", "4"]
    elif left == "torn label":  # as after a power failure: size and time are correct
        path = place / "labels/train/1.png"
        when = path.stat().st_mtime_ns
        files.put(path, bytes(path.stat().st_size))
        os.utime(path, ns=(when, when))
        expected = ["1", "4"]
    elif left == "other meaning":
        yaml.write_text(yaml.read_text().replace("[a, b, c]", "[b, a, c]"))
        expected = list("01234")
    elif left == "no journal":
        journal.unlink()
        expected = list("01234")
    else:
        files.put(place / "labels/val/old.png", b"half")
        files.put(place / ".x.tmp", b"half")
    reads.clear()
    prepare_dataset(str(yaml), root=root, options=PrepareOptions(workers=1))
    assert reads == expected
    prepared = _prepared(tmp_path)
    assert _content(prepared) == _content(_fresh(tmp_path, yaml))
    assert not journal.exists()
    assert not place.exists()


def test_labels_of_a_killed_run_whose_pair_is_gone_are_gone_too(tmp_path):
    yaml = own_set(tmp_path / "mine")
    files.put(tmp_path / "mine/labels/4.png", b"broken")
    with pytest.raises(DataError):
        prepare_dataset(str(yaml), root=tmp_path / "data")
    for number in (1, 4):
        (tmp_path / f"mine/labels/{number}.png").unlink()
        (tmp_path / f"mine/images/{number}.png").unlink()
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert _content(_prepared(tmp_path)) == _content(_fresh(tmp_path, yaml))


def test_what_is_done_is_on_the_disk_while_the_rest_is_read(tmp_path):
    """A killed process cannot write its results later."""
    yaml, lines = own_set(tmp_path / "mine"), []
    journal = tmp_path / "data/prepared/.own.journal"

    def count_lines(*_):
        lines.append(journal.read_bytes().count(b"\n"))

    prepare_dataset(str(yaml), root=tmp_path / "data", on_progress=count_lines)
    assert lines == [1, 2, 3, 4, 5, 6]  # the first call reports the total


@pytest.mark.parametrize("moment", ["between", "after"])
def test_a_change_of_folders_that_was_cut_off_is_completed(tmp_path, reads, moment):
    yaml = own_set(tmp_path / "mine")
    root = tmp_path / "data"
    prepare_dataset(str(yaml), root=root)
    before, prepared = _prepared(tmp_path), root / "prepared"
    if moment == "between":
        (prepared / "own").rename(prepared / ".own.old")
    else:
        shutil.copytree(prepared / "own", prepared / ".own.old")
        files.put(prepared / ".own.old/cache-4x3/x", b"1")
    reads.clear()
    assert prepare_dataset(str(yaml), root=root).unchanged
    assert reads == []
    after = _prepared(tmp_path)
    assert after.pop("cache-4x3/x", "none") == "none" or moment == "after"
    assert after == before
    assert sorted(p.name for p in prepared.iterdir()) == [".own.lock", "own"]


def test_a_full_disk_is_told_with_what_is_missing_and_the_next_run_goes_on(tmp_path, monkeypatch):
    yaml = own_set(tmp_path / "mine", pairs=6)
    root, written = tmp_path / "data", []
    write = images_file.write_atomic

    def full(path, data):
        written.append(path.name)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "no space", str(path))
        write(path, data)

    monkeypatch.setattr(images_file, "write_atomic", full)
    with pytest.raises(EnvironmentFault) as caught:
        prepare_dataset(str(yaml), root=root, options=PrepareOptions(workers=1))
    each = (root / "prepared/.own.tmp/labels/train/0.png").stat().st_size
    assert f"the disk is full: about {4 * each / 1000:.1f} kB are still to be written" in str(
        caught.value
    )
    assert "run the same command again, finished work is kept" in str(caught.value)
    monkeypatch.setattr(images_file, "write_atomic", write)
    assert prepare_dataset(str(yaml), root=root).read == 4


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch, caplog):
    import fcntl

    def refused(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    with file_lock(tmp_path / ".x.lock"):
        pass
    assert "this file system has no locks" in caplog.text


def test_a_lock_is_waited_for_and_a_killed_process_leaves_none(tmp_path, caplog):
    lock = tmp_path / ".own.lock"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from udaseg.files import file_lock\n"
        "with file_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"

        def kill_once_told():
            while "another process is preparing own; waiting for it" not in caplog.text:
                time.sleep(0.01)
            holder.kill()

        with caplog.at_level(logging.INFO, "udaseg"):
            threading.Thread(target=kill_once_told, daemon=True).start()
            with file_lock(lock):
                assert holder.wait() == -signal.SIGKILL


def test_several_at_once_do_it_once(tmp_path):
    yaml = own_set(tmp_path / "mine", pairs=20)
    reports = []
    threads = [
        threading.Thread(
            target=lambda: reports.append(prepare_dataset(str(yaml), root=tmp_path / "data"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.unchanged for report in reports) == [False, True, True, True]
    assert len({json.dumps(state(report.dataset.folder)) for report in reports}) == 1


# the manifest


def test_the_manifest_holds_every_file_with_its_digest(tmp_path):
    yaml = own_set(tmp_path / "mine")
    folder = prepare_dataset(str(yaml), root=tmp_path / "data").dataset.folder
    manifest, prepared = read_manifest(folder), state(folder)
    mine = state(tmp_path / "mine")
    assert len(manifest.rows) == 5
    for row in manifest.rows:
        for file, there in ((row.image, mine), (row.label, mine), (row.prepared, prepared)):
            assert there[file.path][:2] == (file.sha256, file.mtime_ns)
    assert manifest.files == {name: prepared[name][0] for name in ("index.json", "source.json")}
    assert {row.prepared.path for row in manifest.rows} == set(_labels_only(prepared))


def test_no_source_is_read_twice(tmp_path, monkeypatch):
    yaml = own_set(tmp_path / "mine")
    opened = []
    read = images_file.Path.read_bytes
    monkeypatch.setattr(
        images_file.Path, "read_bytes", lambda path: (opened.append(path), read(path))[1]
    )
    prepare_dataset(str(yaml), root=tmp_path / "data")
    mine = [path for path in opened if (tmp_path / "mine/images") in path.parents]
    assert len(mine) == len(set(mine)) == 5


@pytest.mark.parametrize("damage", ["cut", "flip", "line", "version"])
def test_a_damaged_manifest_is_refused_and_made_again(tmp_path, damage):
    yaml = own_set(tmp_path / "mine")
    folder = prepare_dataset(str(yaml), root=tmp_path / "data").dataset.folder
    path = folder / "manifest.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(
        {
            "cut": data[:-30],
            "flip": data.replace(b'"key":"2"', b'"key":"6"'),
            "line": b"".join(lines[:2] + lines[3:]),
            "version": data.replace(b'"format": 2', b'"format": 7'),
        }[damage]
    )
    with pytest.raises(DataError, match=r"damaged: .*run `udaseg prepare own` to prepare it again"):
        verify_dataset("own", root=tmp_path / "data")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert path.read_bytes() == data


# --verify


def test_verify_reads_every_file_and_writes_none(tmp_path):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    before = state(tmp_path)
    done = []
    report = verify_dataset(
        str(yaml), root=tmp_path / "data", on_progress=lambda *at: done.append(at)
    )
    assert (report.files, report.changed, report.missing) == (17, [], [])
    assert done == [(number, 17) for number in range(18)]
    assert state(tmp_path) == before
    yaml.unlink()  # the name of the prepared dataset is enough
    assert verify_dataset("own", root=tmp_path / "data").files == 17


@pytest.mark.parametrize("where", ["mine/images/3.png", "mine/labels/3.png"])
@pytest.mark.parametrize("kind", ["flip", "longer", "gone", "folder", "pipe"])
def test_verify_finds_what_changed_even_where_size_and_time_did_not(tmp_path, where, kind):
    prepare_dataset(str(own_set(tmp_path / "mine")), root=tmp_path / "data")
    path = tmp_path / where
    data, when = path.read_bytes(), path.stat().st_mtime_ns
    path.unlink()
    if kind == "flip":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        os.utime(path, ns=(when, when))
    elif kind == "longer":
        path.write_bytes(data + b"\0")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    report = verify_dataset("own", root=tmp_path / "data")
    gone = kind == "gone"
    assert report.missing == ([str(path)] if gone else [])
    what = {
        "flip": "has different content",
        "longer": f"has {len(data) + 1} bytes, not {len(data)}",
    }
    message = f"{path}: {what.get(kind, 'is no longer a regular file')}"
    assert report.changed == ([] if gone else [message])


@pytest.mark.parametrize("name", ["labels/train/3.png", "index.json", "source.json"])
def test_verify_looks_at_what_was_written_too(tmp_path, name):
    folder = prepare_dataset(str(own_set(tmp_path / "mine")), root=tmp_path / "data").dataset.folder
    data = bytearray((folder / name).read_bytes())
    data[60] ^= 1
    (folder / name).write_bytes(bytes(data))
    report = verify_dataset("own", root=tmp_path / "data")
    assert report.changed == [f"{folder / name}: has different content"]


def test_verify_of_what_is_not_prepared_says_so(tmp_path):
    yaml = own_set(tmp_path / "mine")
    with pytest.raises(DataError, match=r"not prepared below .*; run `udaseg prepare "):
        verify_dataset(str(yaml), root=tmp_path / "data")
    with pytest.raises(DataError, match="no dataset of that name; use one of acdc"):
        verify_dataset("own", root=tmp_path / "data")


def test_a_flip_in_each_of_many_jpegs_is_found(tmp_path):
    """Decoders do not notice most of the flips."""
    prepare_dataset(str(own_set(tmp_path / "mine", 12, form="jpg")), root=tmp_path / "data")
    rng = np.random.default_rng(0)
    for path in (tmp_path / "mine/images").iterdir():
        data, when = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        os.utime(path, ns=(when, when))
    assert prepare_dataset(str(tmp_path / "mine/own.yaml"), root=tmp_path / "data").unchanged
    assert len(verify_dataset("own", root=tmp_path / "data").changed) == 12
