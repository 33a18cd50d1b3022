"""Unusable paths give the same one-sentence error in every command."""

import os
import subprocess

import pytest

from tests.cli.running import udaseg
from tests.support.own import own_set
from udaseg.data.files.find import find_files

LONG = "a" * 300


def error_of(*words, cwd, code=5):
    (line,) = udaseg(*words, cwd=cwd, expect=code).stderr.splitlines()[-1:]
    assert line.startswith("error: ")
    return line


def test_a_root_that_cannot_be_used(tmp_path):
    yaml = own_set(tmp_path / "own", pairs=1)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "prepared").write_text("x")
    (tmp_path / "lock" / "prepared" / ".own.lock").mkdir(parents=True)
    for root, told in (
        ("loop", "loop/prepared: is a link that leads back to itself"),
        ("taken", "taken/prepared: is a file where a folder is needed"),
        ("lock", "lock/prepared/.own.lock: is a folder where a file is needed"),
        (LONG, "the name is longer than the file system allows; choose a shorter one"),
    ):
        assert told in error_of("prepare", yaml, "--root", root, cwd=tmp_path)


def test_a_name_that_is_too_long(tmp_path):
    yaml = own_set(tmp_path / "own", pairs=1)
    yaml.write_text(yaml.read_text().replace("name: own", f"name: {LONG}"))
    told = "the name is longer than the file system allows"
    assert told in error_of("prepare", yaml, cwd=tmp_path)
    assert told in error_of("info", LONG, cwd=tmp_path)
    assert told in error_of("verify", LONG, cwd=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_as_lock_does_not_wait_for_ever(tmp_path):
    yaml = own_set(tmp_path / "own", pairs=1)
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / "prepared" / ".own.lock")
    udaseg("prepare", yaml, cwd=tmp_path)


@pytest.fixture
def deep(tmp_path):
    """Return a folder that pytest cannot remove, and remove it."""
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_files_are_found_below_more_folders_than_calls_can_nest(deep):
    tmp_path = deep
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    (found,) = find_files(tmp_path, "**/*.png")
    assert found == tmp_path / ("d/" * 1200 + "x.png")
    assert len(find_files(tmp_path, "*/*/**/*")) == 1
