"""One process at a time writes a run folder, whatever a dead one has left in it."""

import json
import os
import platform
import shutil
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.kills import die_at
from tests.support.locks import STALE, holders
from tests.support.small import shipped
from udaseg.errors import UsageError
from udaseg.runs.checkpoint import Checkpoint
from udaseg.runs.folder import fill_run_folder, refuse_existing_run, writer_lock

START = Checkpoint(Path("start.pt"), 5, {}, {}, {}, {}, {}, sha256="digest")


@pytest.fixture
def living(tmp_path):
    """Hold the lock of a run folder in another process; return its id."""
    context = get_context("fork")
    begun, over = context.Event(), context.Event()

    def hold():
        with writer_lock(tmp_path / "run"):
            begun.set()
            over.wait(60)

    process = context.Process(target=hold)
    process.start()
    begun.wait(60)
    yield process.pid
    over.set()
    process.join()


def test_the_lock_of_a_living_process_is_refused_but_a_copy_of_it_is_no_lock(tmp_path, living):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match=f"process {living} on .* wait for it or stop it$"):
        ExitStack().enter_context(writer_lock(run))
    (run / "writer.lock").write_text("")  # the words may be missing, the lock holds
    with pytest.raises(UsageError, match="another process is writing this run"):
        ExitStack().enter_context(writer_lock(run))
    shutil.copytree(run, tmp_path / "copy")
    with writer_lock(tmp_path / "copy"):
        pass


@pytest.mark.parametrize(
    "pid",
    [1, 0, -1, 10**20, os.getppid(), os.getpid(), STALE["pid"]],
    ids=["1", "0", "-1", "huge", "parent", "own", "stale"],  # the same in each process of pytest
)
def test_the_words_of_a_dead_process_are_no_lock_whoever_has_its_number_now(tmp_path, pid):
    lock = tmp_path / "writer.lock"
    lock.write_text(json.dumps({**STALE, "pid": pid}))
    with writer_lock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_a_lock_from_another_host_is_left_to_people(tmp_path):
    lock = tmp_path / "writer.lock"
    lock.write_text(json.dumps({**STALE, "host": "elsewhere"}))
    with pytest.raises(UsageError, match=r"on elsewhere .* then delete .*writer\.lock"):
        ExitStack().enter_context(writer_lock(tmp_path))
    assert json.loads(lock.read_text())["host"] == "elsewhere"


def test_a_stale_lock_has_one_holder(tmp_path):
    counts = holders(tmp_path, 100)
    assert counts["two holders"] == 0
    assert counts["held"] >= 100


def test_a_folder_that_moved_takes_its_lock_along_and_the_next_one_keeps_its_own(tmp_path):
    with ExitStack() as first:
        first.enter_context(writer_lock(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / "moved")
        with writer_lock(tmp_path / "run"):
            first.close()
            assert (tmp_path / "run/writer.lock").exists()
    with writer_lock(tmp_path / "moved"):
        assert json.loads((tmp_path / "moved/writer.lock").read_text())["host"] == platform.node()


def _begin(folder, steps, *, overwrite, at=None):
    """Claim a run folder as `adapt --init` does; be killed before the n-th change on the disk."""
    recipe = shipped("toyland/rccr", [f"steps={steps}"])
    if at is not None:
        die_at(at)
    refuse_existing_run(folder, overwrite=overwrite)
    with writer_lock(folder):
        fill_run_folder(folder, recipe, ["udaseg"], init=START)


def _old_run(folder):
    _begin(folder, 100, overwrite=False)
    (folder / "checkpoints/best-entropy").mkdir(parents=True)
    for name in ("metrics.jsonl", "checkpoints/step-000001.pt", "checkpoints/best-entropy/best"):
        (folder / name).write_text("old")


def _content(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "writer.lock"
    }


def _killed_begin(folder, at, *, overwrite):
    context = get_context("fork")
    process = context.Process(
        target=_begin, args=(folder, 200), kwargs={"overwrite": overwrite, "at": at}
    )
    process.start()
    process.join(60)
    return process.exitcode != 0


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.faults)])
def test_a_killed_start_is_a_whole_run_or_goes_on_with_the_same_command(tmp_path, every):
    _begin(tmp_path / "calm", 200, overwrite=False)
    calm, at = _content(tmp_path / "calm"), 1
    while _killed_begin(run := tmp_path / str(at), at, overwrite=False):
        if (run / "recipe.yaml").exists():
            assert _content(run) == calm
        else:
            _begin(run, 200, overwrite=False)
            assert _content(run) == calm
        at += every
    assert at > 8


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.faults)])
def test_a_killed_overwrite_is_one_whole_run_or_goes_on_with_or_without_overwrite(tmp_path, every):
    _begin(tmp_path / "calm", 200, overwrite=False)
    _old_run(tmp_path / "old")
    calm, old, at, seen = _content(tmp_path / "calm"), _content(tmp_path / "old"), 1, []
    while True:
        run = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", run)
        if not _killed_begin(run, at, overwrite=True):
            break
        seen.append("recipe.yaml" in _content(run))
        if seen[-1]:
            assert _content(run) in (old, calm)
        if at % 2 or seen[-1]:
            _begin(run, 200, overwrite=True)
        else:
            _begin(run, 200, overwrite=False)
        assert _content(run) == calm
        at += every
    assert seen.count(False) > 12 / every


def test_a_run_that_is_being_written_is_not_overwritten(tmp_path, living):
    run = tmp_path / "run"
    (run / "recipe.yaml").write_text("of the first")
    with pytest.raises(UsageError, match=f"process {living} on .* is writing this run"):
        _begin(run, 200, overwrite=True)
    assert _content(run) == {"recipe.yaml": "of the first"}


def test_a_folder_of_somebody_is_neither_overwritten_nor_taken_for_a_start(tmp_path):
    for name in ("command.txt", "photo.jpg"):
        (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="--out"):
            _begin(tmp_path, 200, overwrite=overwrite)
    assert _content(tmp_path) == {"command.txt": "mine", "photo.jpg": "mine"}
