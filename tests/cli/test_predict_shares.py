"""Inputs of `udaseg predict` and `eval` shared among shards, or among processes of torchrun."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.running import udaseg
from tests.make_fixtures import unpack_run
from tests.support.colors import COLORS, loaded_colors, random_labels
from tests.support.films import write_film
from tests.support.predicting import digests, predict, write_image
from tests.support.torchrun import torchrun
from udaseg.cli.main import main
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import PartialError, UsageError

COUNT = 7


def contents(folder):
    return {str(path.relative_to(folder)): digest for path, digest in digests(folder).items()}


@pytest.fixture
def images(run):
    for number in range(COUNT):
        write_image(f"in/{number}.png", random_labels(8, 12, seed=number))
    return run


def test_shards_write_what_one_command_writes(images):
    predict("in", out=Path("whole"), save=("ids", "color", "labelme"))
    written = []
    for number in (3, 1, 2):
        before = len(list(Path("parts/ids").glob("*.png")))
        predict("in", out=Path("parts"), save=("ids", "color", "labelme"), shard=f"{number}/3")
        written.append(len(list(Path("parts/ids").glob("*.png"))) - before)
    assert written == [2, 3, 2]
    assert contents(Path("whole")) == contents(Path("parts"))
    predict("in", out=Path("parts"), save=("ids", "coco"), resume=True)
    assert len(json.loads(Path("parts/coco.json").read_text())["images"]) == COUNT


def test_a_shard_is_resumed_and_names_its_own_failures(images, capsys):
    Path("in/0.png").write_bytes(b"no image")
    Path("in/1.png").write_bytes(b"no image")
    for number in (1, 2):
        with pytest.raises(PartialError, match=rf"1 of . images .*failures-{number}-of-3.csv"):
            predict("in", shard=f"{number}/3")
        with Path(f"masks/failures-{number}-of-3.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert Path(row["image"]).name == f"{number - 1}.png"
    write_image("in/0.png", random_labels(8, 12))
    predict("in", shard="1/3", resume=True)
    assert "1 image predicted, 2 kept from an earlier run" in capsys.readouterr().out
    assert not Path("masks/failures-1-of-3.csv").exists()
    assert Path("masks/failures-2-of-3.csv").exists()


def test_more_shards_than_images_leave_some_without_work(images, capsys):
    predict("in", shard=f"{COUNT + 1}/{COUNT + 1}")
    assert "no images predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/3"}, "--shard must be from 1/3 to 3/3, got 0/3"),
        ({"shard": "4/3"}, "--shard must be from 1/3 to 3/3, got 4/3"),
        ({"shard": "half"}, "--shard must be I/N, for example 1/4, got half"),
        ({"shard": "1/3", "overwrite": True}, "--overwrite replaces the masks of all images"),
        ({"shard": "1/3", "save": ("coco",)}, "--save coco is one file of all images"),
    ],
)
def test_what_a_shard_cannot_do_is_refused(options, message, images):
    with pytest.raises(UsageError, match=message):
        predict("in", **options)
    assert not Path("masks").exists()


def test_shards_of_two_networks_do_not_meet_in_a_folder(images):
    predict("in", shard="1/2")
    other = ClassSpace(("road", "sky", "bus"), COLORS.colors)
    images["run"] = loaded_colors(classes=other)
    with pytest.raises(UsageError, match="a different classes; --shard would mix both"):
        predict("in", shard="2/2")


@pytest.mark.parametrize("words", [["info", "runs/a"], ["select", "runs/a"]])
def test_torchrun_is_refused_where_every_process_would_do_the_same(words, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "torchrun works only with" in capsys.readouterr().err


def test_scores_of_prediction_files_need_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("eval", "--predictions", "masks", "--data", "camvid")
    assert "run them without torchrun" in udaseg(*words, cwd=tmp_path, expect=2).stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a real run, and 9 images of which one is damaged."""
    folder = tmp_path_factory.mktemp("trained")
    unpack_run("rccr", folder / "run")
    for number in range(9):
        write_image(folder / f"in/{number}.png", random_labels(32, 48, seed=number))
    (folder / "in/5.png").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_two_processes_predict_and_resume_as_one(trained):
    words = ("predict", "in", "--checkpoint", "run", "--save", "ids,confidence,coco")
    one = udaseg(*words, "--out", "one", cwd=trained, expect=4)
    out, err = torchrun(*words, "--out", "two", cwd=trained, expect=1)
    assert out == one.stdout.replace("one/", "two/")
    assert err.count("error: 1 of 9 images failed") == 1
    assert "process 1: warning" in err
    assert contents(trained / "one") == contents(trained / "two")
    for name in "013":
        (trained / f"two/ids/{name}.png").unlink()
    out, _ = torchrun(*words, "--out", "two", "--resume", cwd=trained, expect=1)
    assert "3 images predicted, 5 kept from an earlier run" in out
    assert contents(trained / "one") == contents(trained / "two")


@pytest.mark.slow
def test_two_processes_share_videos_and_images(trained):
    for number in range(3):
        write_film(trained / f"films/{number}.avi", 3, seed=number)
    write_image(trained / "films/still.png", random_labels(32, 48))
    words = ("predict", "films", "--checkpoint", "run", "--video", "frames", "--save", "color,ids")
    one = udaseg(*words, "--out", "films1", cwd=trained)
    out, _ = torchrun(*words, "--out", "films2", cwd=trained)
    assert "3 videos of 9 frames" in out
    assert out == one.stdout.replace("films1/", "films2/")
    assert contents(trained / "films1") == contents(trained / "films2")


EVAL = ("eval", "run", "--data", "toyland", "--split", "train", "--format", "json")


@pytest.mark.slow
def test_two_processes_and_shards_score_as_one(trained, root):
    one = udaseg(*EVAL, "--root", root, "--out", "s1", "--save", "p1", cwd=trained)
    out, _ = torchrun(*EVAL, "--root", root, "--out", "s2", "--save", "p2", cwd=trained)
    assert out == one.stdout
    assert contents(trained / "s1") == contents(trained / "s2")
    assert contents(trained / "p1") == contents(trained / "p2")
    images = root / "toyland/source/train/images"
    for shard in ("1/2", "2/2"):
        words = ("--checkpoint", "run", "--save", "ids", "--out", "parts", "--shard", shard)
        udaseg("predict", images, *words, cwd=trained)
    words = ("eval", "--predictions", "parts/ids", *EVAL[2:], "--root", root)
    merged = udaseg(*words, cwd=trained).stdout
    assert json.loads(merged)["classes"] == json.loads(one.stdout)["classes"]


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_one_error(trained, root, tmp_path):
    image = sorted((root / "toyland/source/train/images").rglob("*.png"))[1]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    try:
        _, err = torchrun(*EVAL, "--root", root, cwd=trained, expect=1)
    finally:
        image.write_bytes(content)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert image.name in errors[0]
    (tmp_path / "file").touch()
    words = ("predict", "in", "--checkpoint", "run", "--out", tmp_path / "file/masks")
    _, err = torchrun(*words, cwd=trained, expect=1)
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
