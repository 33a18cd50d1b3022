"""The words in a lock file, which tell who writes a run where the file system has no locks."""

import json
import os
import platform
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from udaseg.errors import UsageError
from udaseg.runs import folder as folder_module
from udaseg.runs.folder import writer_lock

HERE = platform.node()


@pytest.fixture(autouse=True)
def without_locks(monkeypatch):
    """Be on a file system without locks."""

    @contextmanager
    def no_lock(path):
        path.touch()
        yield None

    monkeypatch.setattr(folder_module, "try_file_lock", no_lock)


@pytest.fixture
def other(tmp_path):
    """Return the lock of a living process."""
    context = get_context("fork")
    begun, over = context.Event(), context.Event()

    def hold():
        with writer_lock(tmp_path):
            begun.set()
            over.wait(60)

    process = context.Process(target=hold)
    process.start()
    begun.wait(60)
    yield tmp_path / "writer.lock"
    over.set()
    process.join()


def taken(folder):
    """Check that this process gets the lock."""
    with writer_lock(folder):
        assert json.loads((folder / "writer.lock").read_text())["pid"] == os.getpid()
    assert not (folder / "writer.lock").exists()


def test_the_lock_of_a_living_process_holds(other):
    pid = json.loads(other.read_text())["pid"]
    with pytest.raises(UsageError, match=f"process {pid} on {HERE} is writing"):
        taken(other.parent)
    assert json.loads(other.read_text())["pid"] == pid


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_id_that_another_program_has_now_is_no_lock(other):
    words = json.loads(other.read_text())
    other.write_text(json.dumps({**words, "started": "1"}))
    taken(other.parent)


def test_a_copy_of_the_folder_is_not_locked(other):
    (other.parent / "copy").mkdir()
    (other.parent / "copy/writer.lock").write_bytes(other.read_bytes())
    taken(other.parent / "copy")
    assert other.exists()


@pytest.mark.parametrize(
    "pid", [0, -1, 2**22 - 1, 10**20, os.getpid()], ids=["0", "-1", "largest", "huge", "own"]
)
def test_no_process_has_such_a_number(tmp_path, pid):
    (tmp_path / "writer.lock").write_text(json.dumps({"pid": pid, "host": HERE}))
    taken(tmp_path)


@pytest.mark.parametrize("words", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "host": "y"}'])
def test_words_that_name_no_process_are_no_lock(tmp_path, words):
    (tmp_path / "writer.lock").write_text(words)
    taken(tmp_path)
