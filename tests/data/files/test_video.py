"""Videos: frames as a player shows them, complete output, and errors for truncated files."""

import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.support.colors import painted
from tests.support.films import frames_of, turn, write_film
from udaseg.data.files.video import VideoReader, VideoWriter
from udaseg.errors import DataError, EnvironmentFault


@pytest.mark.parametrize("suffix", ["mp4", "avi", "webm"])
@pytest.mark.parametrize("size", [(32, 48), (31, 47)])
def test_what_is_written_is_read_again_in_order(tmp_path, suffix, size):
    path = tmp_path / f"film.{suffix}"
    labels = write_film(path, 7, size)
    with VideoReader(path) as film:
        assert film.declared_frames == 7
        assert film.fps == pytest.approx(12.5)
        frames = list(film)
    assert film.frames_read == 7
    # odd sizes are padded by one pixel
    assert film.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    for frame, shown in zip(frames, labels, strict=True):
        right = frame[: size[0], : size[1]].argmax(-1) == shown
        assert right.mean() > 0.9


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_given_as_a_player_shows_it(tmp_path, degrees):
    path = tmp_path / "film.mp4"
    corner = np.zeros((32, 48), np.uint8)
    corner[:16, :16] = 2
    with VideoWriter(path, 25, (32, 48)) as film:
        film.write(painted(corner))
    turn(path, degrees)
    with VideoReader(path) as film:
        (frame,) = film
    shown = np.rot90(painted(corner), -degrees // 90)
    assert frame.shape == shown.shape
    assert film.size == shown.shape[:2]
    assert np.abs(frame.astype(int) - shown).mean() < 25


@pytest.mark.parametrize("suffix", ["mp4", "avi", "webm"])
def test_a_video_cut_anywhere_is_refused(tmp_path, suffix):
    write_film(tmp_path / f"film.{suffix}", 9)
    data = (tmp_path / f"film.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for part in range(0, len(data), max(1, len(data) // 40)):
        cut.write_bytes(data[:part])
        with pytest.raises(DataError, match=r"cut\." + suffix), VideoReader(cut):
            pass


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n/etc/passwd\n", "not a readable video"),  # a playlist
        (b"GIF89a" + bytes(40), "not a readable video"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(12), "cut off"),
        (b"RIFF\xff\xff\xff\x7fAVI " + bytes(40), "cut off"),
        (b"\x1a\x45\xdf\xa3", "cut off"),
        (b"\x1a\x45\xdf\xa3\x00", "cut off"),
        (b"\x00\x00\x01\xba" + bytes(3000), "cannot be opened"),
        (b"\x00\x00\x00\x08moov\x00\x00\x00\x08mdat", "cannot be opened"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, content, what):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what), VideoReader(path):
        pass


def test_what_is_no_file_is_named_without_a_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    faults = (("pipe.mp4", "not a regular"), ("folder.mp4", "folder"), ("no.mp4", "no such"))
    for name, what in faults:
        with pytest.raises(DataError, match=what), VideoReader(tmp_path / name):
            pass


def test_a_video_whose_frames_are_damaged_is_refused_or_told(tmp_path, caplog):
    path = tmp_path / "film.avi"
    write_film(path, 20)
    data = bytearray(path.read_bytes())
    start = data.index(b"movi")
    data[start + 40 : start + 40 + (len(data) - start) // 2] = bytes((len(data) - start) // 2)
    path.write_bytes(data)
    try:
        with VideoReader(path) as film:
            given = len(list(film))
    except DataError:
        return
    assert given < 18
    assert f"gives 20 frames, but {given} could be decoded" in caplog.text


@pytest.mark.parametrize(("fps", "size"), [(25, (16, 20_000)), (66.1234, (16, 16))])
def test_a_size_or_rate_that_cannot_be_written_is_told(tmp_path, fps, size):
    with (
        pytest.raises(DataError, match="frames per second as mp4; write frames or avi instead"),
        VideoWriter(tmp_path / "film.mp4", fps, size),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_not_taken_for_a_size(tmp_path):
    with pytest.raises(FileNotFoundError), VideoWriter(tmp_path / "no/film.mp4", 25, (16, 16)):
        pass


def _write_in_little_room(path, result):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    noise = np.random.default_rng(0)
    try:
        with VideoWriter(path, 25, (64, 64)) as film:
            for _ in range(40):
                film.write(noise.integers(0, 256, (64, 64, 3), np.uint8))
    except EnvironmentFault as fault:
        result.put(str(fault))
    else:
        result.put("written")


def test_a_full_disk_while_writing_is_found_out_at_the_end(tmp_path):
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    process = context.Process(target=_write_in_little_room, args=(tmp_path / "film.mp4", result))
    process.start()
    process.join(30)
    assert "is the disk full" in result.get()


def test_the_helper_sees_what_the_reader_sees(tmp_path):
    write_film(tmp_path / "film.mp4", 3)
    with VideoReader(tmp_path / "film.mp4") as film:
        mine = list(film)
    theirs = frames_of(Path(tmp_path / "film.mp4"))
    assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))
