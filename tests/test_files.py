"""Files are synced before a rename makes them visible (recorded calls; a kill cannot show it)."""

import os
from pathlib import Path

import pytest

from tests.support import files, kills
from tests.support.own import own_set
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.files import write_text


@pytest.fixture
def calls(monkeypatch):
    """Record renames, replacements and syncs in order."""
    events, rename, fsync, replace = [], Path.rename, os.fsync, Path.replace

    def renamed(self, target):
        events.append(f"{self.name} -> {Path(target).name}")
        return rename(self, target)

    def replaced(self, target):
        events.append(f"write {Path(target).name}")
        return replace(self, target)

    def synced(descriptor):
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the name behind a descriptor is known on Linux only")
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "sync", lambda: events.append("sync"))
    return events


def _after(calls, word):
    return calls[max(number for number, call in enumerate(calls) if call == word) :]


def test_a_prepared_set_is_on_the_disk_before_it_takes_its_place(tmp_path, calls):
    yaml = own_set(tmp_path / "mine")
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert _after(calls, "write manifest.jsonl") == [
        "write manifest.jsonl",
        "sync",
        ".own.tmp -> own",
        "fsync prepared",
    ]
    files.put(tmp_path / "mine/images/9.png", files.image_png())
    files.put(tmp_path / "mine/labels/9.png", (tmp_path / "mine/labels/1.png").read_bytes())
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert _after(calls, "sync") == [
        "sync",
        "own -> .own.old",
        ".own.tmp -> own",
        "fsync prepared",
    ]


def test_what_was_unpacked_is_on_the_disk_before_it_takes_its_place(tmp_path, calls):
    kills.archived_set(tmp_path, parts=1, pairs=2)
    prepare_dataset("gta5", root=tmp_path)
    at = calls.index(".gta5.tmp -> gta5")
    assert calls[at - 1 : at + 2] == ["sync", ".gta5.tmp -> gta5", "fsync unpacked"]


def test_a_cache_is_on_the_disk_before_its_manifest(tmp_path, calls):
    yaml = own_set(tmp_path / "mine")
    dataset = prepare_dataset(str(yaml), root=tmp_path / "data").dataset
    calls.clear()
    write_cache(dataset, (4, 6), workers=1)
    assert calls[-2:] == ["sync", "write cache.json"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError, match="directory") as caught:
        write_text(tmp_path, "page")
    assert caught.value.filename == str(tmp_path)
