"""Files that a run holds are read only as they were; a copy of the same bytes is no change."""

import os

import pytest

from udaseg.data.files import held as held_module
from udaseg.data.files.held import hold_now, read_held
from udaseg.errors import DataChanged, DataError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    return path


def _held(path):
    return {str(path): hold_now(path)}


@pytest.mark.parametrize("change", ["same size", "longer", "empty", "gone", "a folder"])
def test_another_content_is_refused_and_named(path, change):
    held = _held(path)
    assert read_held(path, held) == b"first"
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "gone":
        path.write_bytes({"same size": b"other", "longer": b"others", "empty": b""}[change])
    with pytest.raises(DataChanged, match="when the run started") as caught:
        read_held(path, held)
    assert str(path) in str(caught.value)


def test_the_same_bytes_with_another_time_are_digested_once(path, monkeypatch):
    held, digested = _held(path), []
    digest = held_module.sha256
    monkeypatch.setattr(held_module, "sha256", lambda data: digested.append(data) or digest(data))
    read_held(path, held)
    assert not digested
    os.utime(path, ns=(1, 1))
    for _ in range(3):
        assert read_held(path, held) == b"first"
    assert digested == [b"first"]


@pytest.mark.parametrize("change", ["other content", "gone"])
def test_without_a_stamp_the_content_alone_counts(path, change):
    held = {str(path): hold_now(path)._replace(stamp="")}
    assert [read_held(path, held) for _ in range(2)] == [b"first"] * 2
    when = path.stat().st_mtime_ns
    path.unlink()
    if change != "gone":
        path.write_bytes(b"other")
        os.utime(path, ns=(when, when))
    with pytest.raises(DataChanged):
        read_held(path, held)


def test_a_change_during_the_read_is_noticed(path, monkeypatch):
    held, read = _held(path), held_module.read_bytes

    def torn(name):
        data = read(name)[:3] + b"xx"
        name.write_bytes(b"fixxx")
        return data

    monkeypatch.setattr(held_module, "read_bytes", torn)
    with pytest.raises(DataChanged):
        read_held(path, held)


def test_what_could_not_be_read_before_stays_a_bad_file_until_it_changes(path):
    path.write_bytes(b"")
    held = _held(path)
    with pytest.raises(DataError, match="is empty") as caught:
        read_held(path, held)
    assert not isinstance(caught.value, DataChanged)
    path.write_bytes(b"repaired")
    with pytest.raises(DataChanged):
        read_held(path, held)


def test_a_file_that_is_not_held_is_only_read(path):
    assert read_held(path, {}) == b"first"
