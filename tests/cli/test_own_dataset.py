"""A user's own data set (two folders and a class list) through every command, without Python."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.running import udaseg
from tests.support import files
from tests.support.toy import TINY

YAML = """\
name: my_city
images: images/**/*.png
labels: labels/**/*.png
classes:
  - {name: road, ids: [7, 13], color: [128, 64, 128]}
  - {name: car, ids: [26], color: [0, 0, 142]}
  - {name: sky, ids: [300], color: [70, 130, 180]}
ignore: [0, 255]
splits: {train: 0.75, val: 0.25}
"""
SIZE = (64, 96)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a labelled city and a nested folder of photos."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for number in range(4):
        name = f"{'ab'[number % 2]}/frame {number}"
        files.put(home / f"city/images/{name}.png", files.image_png(*SIZE, number))
        ids = np.kron(rng.choice([7, 13, 26, 300, 0], (8, 12)), np.ones((8, 8), int))
        files.put(home / f"city/labels/{name}.png", files.gray_png(ids, 16))
    for number, name in enumerate(("x.jpg", "trip/y.png", "trip/day 2/z.JPG")):
        picture = Image.fromarray(files.noise(72, 100, number))
        kind = "PNG" if name.endswith("png") else "JPEG"
        files.put(home / "photos" / name, files.coded(picture, kind))
    files.dataset_yaml(home / "city", YAML, "my_city.yaml")
    assert len(YAML.splitlines()) <= 10
    udaseg("prepare", "city/my_city.yaml", cwd=home)
    return home


@pytest.fixture(scope="module")
def adapted(home):
    """Train and adapt for two steps each; return the folder of the adapted run."""
    words = ("--source", "city/my_city.yaml", "--target", "photos", "--steps", 2)
    udaseg("train", *words, "--out", "runs/source", *TINY, cwd=home)
    udaseg("adapt", *words, "--out", "runs/adapted", *TINY, cwd=home)
    return home / "runs/adapted"


def test_it_is_prepared_and_its_classes_counted(home):
    output = udaseg("prepare", "city/my_city.yaml", cwd=home).stdout
    assert "my_city: unchanged" in output
    index = json.loads((home / "data/prepared/my_city/index.json").read_text())
    assert [entry["name"] for entry in index["classes"]] == ["road", "car", "sky"]
    assert {split: len(rows) for split, rows in index["splits"].items()} == {"train": 3, "val": 1}
    for row in index["splits"]["train"]:
        with Image.open(home / "city" / row[0].replace("images", "labels")) as opened:
            ids = np.asarray(opened)
        assert row[4] == [
            int(np.isin(ids, class_ids).sum()) for class_ids in ([7, 13], [26], [300])
        ]


def test_the_doctor_finds_nothing_to_stop_it(home):
    udaseg("doctor", "city/my_city.yaml", "--target", "photos", cwd=home)


def test_it_trains_and_adapts_to_a_folder_without_labels(home, adapted):
    for run in (home / "runs/source", adapted):
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        last = (run / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == 2
    assert "photos" in (adapted / "recipe.yaml").read_text()


def test_it_predicts_with_the_newest_run_in_its_own_colours(home, adapted):
    udaseg("predict", "photos", "--save", "color,ids", cwd=home)
    colors = {(128, 64, 128), (0, 0, 142), (70, 130, 180)}
    for name in ("x", "trip/y", "trip/day 2/z"):
        (mask,) = (home / "masks/ids").rglob(f"{name.rpartition('/')[2]}*.png")
        with Image.open(mask) as opened:
            ids = np.asarray(opened)
        assert ids.shape == (72, 100)
        assert set(np.unique(ids)) <= {0, 1, 2}
        (mask,) = (home / "masks/color").rglob(f"{name.rpartition('/')[2]}*.png")
        with Image.open(mask) as opened:
            seen = {tuple(color) for color in np.asarray(opened.convert("RGB")).reshape(-1, 3)}
        assert {tuple(int(part) for part in color) for color in seen} <= colors


def test_it_is_scored_on_labels_with_other_classes_by_name(home, adapted):
    other = YAML.replace("my_city", "other").replace("name: sky", "name: tram")
    files.dataset_yaml(home / "city", other, "other.yaml")
    output = udaseg("eval", "runs/adapted", "--data", "city/other.yaml", cwd=home).stdout
    text = " ".join(output.split())
    assert "no truth for sky, classes that only the network has" in text
    assert "does not know tram: these pixels are not scored" in text
    scores = json.loads((adapted / "eval/other-val/scores.json").read_text())
    assert {row["name"]: row["iou"] is None for row in scores["classes"]}["sky"]


def test_the_plan_names_what_only_one_side_has_before_anything_trains(home):
    other = YAML.replace("my_city", "target").replace("name: sky", "name: tram")
    files.dataset_yaml(home / "city", other, "target.yaml")
    words = ("--source", "city/my_city.yaml", "--target", "city/target.yaml", "--steps", 2)
    output = udaseg("adapt", *words, *TINY, "--dry-run", cwd=home).stderr
    assert "only in my_city: sky (trained, never scored)" in output
    assert "only in target: tram (the network cannot predict them)" in output


def test_a_typo_in_the_class_list_is_named_before_anything_is_read(home):
    files.dataset_yaml(home / "city", YAML.replace("color: [0, 0", "colour: [0, 0"), "typo.yaml")
    output = udaseg("prepare", "city/typo.yaml", cwd=home, expect=3).stderr
    assert "typo.yaml:6:28: classes[1].colour: unknown key; did you mean 'color" in output
