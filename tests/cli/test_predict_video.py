"""`udaseg predict` of videos: every frame, colour masks as a video, no partial output."""

import csv
import errno
import functools
import hashlib
import json
import os
import signal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import predicting
from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.films import frames_of, turn, write_film
from tests.support.loading import replace_load
from tests.support.predicting import ids_of
from udaseg.data.files.video import VideoReader
from udaseg.errors import DataError, EnvironmentFault, Interrupted, PartialError, UsageError


class Nearest(torch.nn.Module):
    """Predicts the strongest colour, which survives a codec; raises SIGTERM at call `calls`."""

    def __init__(self, calls=None):
        super().__init__()
        self.calls, self.batches = calls, []

    def forward(self, images):
        self.batches.append(len(images))
        if self.calls is not None and len(self.batches) == self.calls:
            signal.raise_signal(signal.SIGTERM)
        return SimpleNamespace(logits=10 * images)


@pytest.fixture(autouse=True)
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = {"run": loaded_colors(network=Nearest())}
    replace_load(monkeypatch, lambda path, **_: state["run"])
    return state


predict = functools.partial(predicting.predict, save=("color", "ids"))


def files_below(folder):
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def digests(folder):
    return {
        name: hashlib.sha256(Path(folder, name).read_bytes()).digest()
        for name in files_below(folder)
    }


def test_every_frame_gets_its_ids_and_the_colours_are_a_video(capsys):
    write_film(Path("in/film.avi"), 5)
    with VideoReader(Path("in/film.avi")) as film:
        expected = [frame.argmax(-1) for frame in film]
    predict("in/film.avi", save=("color", "ids", "overlay", "confidence", "logits"))
    numbers = [f"{number:06d}" for number in range(5)]
    assert files_below("masks") == sorted(
        [
            *("color/film.mp4", "overlay/film.mp4", "legend.png", "prediction.json"),
            "videos/film.avi.json",
            *(f"ids/film.avi.frames/{number}.png" for number in numbers),
            *(f"confidence/film.avi.frames/{number}.png" for number in numbers),
            *(f"logits/film.avi.frames/{number}.npy" for number in numbers),
        ]
    )
    for number, labels in zip(numbers, expected, strict=True):
        assert (ids_of(f"masks/ids/film.avi.frames/{number}.png") == labels).all()
    colors = np.array(COLORS.colors)
    for frame, labels in zip(frames_of(Path("masks/color/film.mp4")), expected, strict=True):
        nearest = np.abs(frame[..., None, :].astype(int) - colors).sum(-1).argmin(-1)
        assert (nearest == labels).mean() > 0.9
    with VideoReader(Path("masks/overlay/film.mp4")) as film:
        assert film.fps == pytest.approx(12.5)
        assert len(list(film)) == 5
    record = json.loads(Path("masks/videos/film.avi.json").read_text())
    assert record["frames"] == 5
    assert record["size"] == [32, 48]
    assert "1 video of 5 frames predicted" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["webm", "avi", "frames"])
def test_colours_become_what_is_asked_for(form):
    write_film(Path("film.mp4"), 3)
    predict("film.mp4", save=("color",), video=form)
    if form == "frames":
        assert len(list(Path("masks/color/film.mp4.frames").glob("*.png"))) == 3
    else:
        assert len(frames_of(Path(f"masks/color/film.{form}"))) == 3


def test_a_turned_video_has_upright_masks():
    write_film(Path("film.mp4"), 2, (32, 64))
    turn(Path("film.mp4"), 90)
    predict("film.mp4")
    assert ids_of("masks/ids/film.mp4.frames/000000.png").shape == (64, 32)
    assert frames_of(Path("masks/color/film.mp4"))[0].shape == (64, 32, 3)


def test_videos_lie_beside_images_and_folders_of_their_frames():
    write_film(Path("in/film.mp4"), 2)
    write_film(Path("in/film.avi"), 2)
    for name in ("in/film.png", "in/film/000000.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(painted(random_labels(8, 8))).save(name)
    predict("in")
    assert {name for name in files_below("masks") if "frames" not in name} == {
        *("color/film.png", "color/film/000000.png", "color/film.avi.mp4", "color/film.mp4.mp4"),
        *("ids/film.png", "ids/film/000000.png", "legend.png", "prediction.json"),
        *("videos/film.avi.json", "videos/film.mp4.json"),
    }


def test_frames_are_looked_at_in_batches_and_labelled_the_same(run):
    write_film(Path("film.avi"), 7)
    predict("film.avi", save=("ids",), batch=3)
    assert run["run"].segmenter.batches == [3, 3, 1]
    predict("film.avi", save=("ids",), out=Path("single"))
    assert digests("masks/ids") == digests("single/ids")


def test_a_bad_video_is_named_leaves_nothing_and_stops_no_other():
    write_film(Path("in/good.mp4"), 3)
    data = Path("in/good.mp4").read_bytes()
    Path("in/cut.mp4").write_bytes(data[: len(data) // 2])
    Path("in/text.avi").write_text("no film")
    Path("in/list.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(PartialError, match="3 of 4 inputs failed"):
        predict("in")
    with Path("masks/failures.csv").open(newline="") as file:
        reasons = {Path(row["image"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"cut.mp4", "text.avi", "list.mp4"}
    assert "cut off" in reasons["cut.mp4"]
    assert not any(name in path for path in files_below("masks") for name in ("cut", "text"))
    assert len(frames_of(Path("masks/color/good.mp4"))) == 3
    # no temporary file is left either
    assert not list(Path("masks").rglob(".*"))


def test_a_video_that_the_codec_does_not_take_stops_no_other():
    write_film(Path("in/a.avi"), 3, fps=66.1234)
    write_film(Path("in/b.mp4"), 3)
    with pytest.raises(PartialError, match="1 of 2 inputs failed"):
        predict("in", save=("ids", "overlay"), video="mp4")
    with Path("masks/failures.csv").open(newline="") as file:
        ((image, reason),) = ((row["image"], row["reason"]) for row in csv.DictReader(file))
    assert Path(image).name == "a.avi"
    assert reason.startswith(f"{image}: this OpenCV cannot write")
    assert "66.12" in reason
    assert "b.mp4" in files_below("masks/overlay")
    assert not list(Path("masks").rglob(".*"))


def test_failures_before_a_full_disk_are_named_all_the_same(monkeypatch):
    Path("in").mkdir()
    Path("in/a.mp4").write_bytes(b"no")
    write_film(Path("in/b.mp4"), 3)
    module = import_module("udaseg.prediction.videos")

    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_masks", fill)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        predict("in")
    assert "a.mp4: is not a readable video" in Path("masks/failures.csv").read_text()


def test_a_signal_in_a_video_leaves_nothing_of_it_and_resume_does_it_whole(run):
    write_film(Path("in/a.mp4"), 4)
    write_film(Path("in/b.mp4"), 6)
    run["run"] = loaded_colors(network=Nearest(calls=7))
    with pytest.raises(Interrupted, match="stopped after 1 of 2 inputs"):
        predict("in")
    assert [name for name in files_below("masks") if "/b." in name] == []
    run["run"] = loaded_colors(network=Nearest())
    predict("in", resume=True)
    assert run["run"].segmenter.batches == [1] * 6
    assert len(frames_of(Path("masks/color/b.mp4"))) == 6


@pytest.mark.parametrize("harm", ["cut video", "frame gone", "frame damaged", "no record"])
def test_resume_makes_a_video_anew_that_is_not_as_it_was_written(run, harm):
    write_film(Path("film.mp4"), 4)
    predict("film.mp4")
    before = digests("masks")
    color, frame = Path("masks/color/film.mp4"), Path("masks/ids/film.mp4.frames/000002.png")
    match harm:
        case "cut video":
            color.write_bytes(color.read_bytes()[:-9])
        case "frame gone":
            frame.unlink()
        case "frame damaged":
            frame.write_bytes(frame.read_bytes()[:-9])
        case "no record":
            Path("masks/videos/film.mp4.json").unlink()
    predict("film.mp4", resume=True)
    assert len(run["run"].segmenter.batches) == 8
    assert digests("masks") == before


def test_what_exists_is_refused_and_overwrite_makes_it_anew():
    write_film(Path("film.mp4"), 2)
    predict("film.mp4")
    with pytest.raises(UsageError, match="3 of the masks exist"):
        predict("film.mp4")
    write_film(Path("film.mp4"), 1, seed=9)
    predict("film.mp4", overwrite=True)
    assert len(list(Path("masks/ids/film.mp4.frames").iterdir())) == 1


def test_overwrite_leaves_what_is_no_frame_of_ours():
    write_film(Path("film.mp4"), 2)
    predict("film.mp4")
    mine = Path("masks/ids/film.mp4.frames/notes.txt")
    mine.write_text("mine")
    with pytest.raises(EnvironmentFault, match=r"film\.mp4\.frames: cannot be written"):
        predict("film.mp4", overwrite=True)
    assert mine.read_text() == "mine"


def test_a_video_is_never_written_over():
    write_film(Path("out/color/film.mp4"), 2)
    before = digests("out")
    with pytest.raises(UsageError):
        predict("out/color/film.mp4", out=Path("out"), overwrite=True)
    Path("link.mp4").symlink_to("out/color/film.mp4")
    Path("other/color").mkdir(parents=True)
    os.link("out/color/film.mp4", "other/color/link.mp4")
    with pytest.raises(UsageError, match="is also an input"):
        predict("link.mp4", out=Path("other"), overwrite=True)
    assert digests("out") == before


def test_a_disk_that_is_full_in_a_video_leaves_nothing_of_it(monkeypatch):
    write_film(Path("in/a.mp4"), 3)
    write_film(Path("in/b.mp4"), 3)
    module = import_module("udaseg.prediction.videos")
    real, written = module.write_masks, []

    def fill(*words):
        written.append(1)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*words)

    monkeypatch.setattr(module, "write_masks", fill)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        predict("in")
    assert [name for name in files_below("masks") if "/b." in name] == []
    assert len(frames_of(Path("masks/color/a.mp4"))) == 3


def test_only_bad_videos_are_bad_data():
    Path("a.mp4").write_bytes(b"no")
    with pytest.raises(DataError, match="none of 1 inputs"):
        predict("a.mp4")


def test_a_name_that_is_not_utf8_is_a_bad_input():
    write_film(Path("in/a.mp4"), 1)
    try:
        Path("in/a.mp4").rename("in/\udcff.mp4")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with pytest.raises(DataError):
        predict("in")
    assert "must be UTF-8" in Path("masks/failures.csv").read_text()
