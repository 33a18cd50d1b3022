"""`udaseg tile`: every pixel of images and labels is in a tile, and the tiles are a data set."""

import numpy as np
import pytest
from PIL import Image

import udaseg
from tests.support import files
from tests.support.colors import random_labels
from udaseg.cli.main import main
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError, UsageError

YAML = """\
name: city
images: {train: i/train/**/*, val: i/val/**/*}
labels: {train: l/train/**/*, val: l/val/*}
label_format: rgb
classes:
  - {name: a road, color: [128, 64, 128]}
  - {name: "sky: blue", color: [70, 130, 180]}
ignore: [[0, 0, 142]]
"""
COLORS = np.array([[128, 64, 128], [70, 130, 180], [0, 0, 142]], np.uint8)


@pytest.fixture
def city(tmp_path):
    """Return the YAML of three mosaics: larger than a tile, narrower, and equal to it."""
    sizes = {"train/big": (70, 100), "train/far/narrow": (20, 64), "val/big": (32, 32)}
    for number, (name, size) in enumerate(sizes.items()):
        files.put(tmp_path / f"i/{name}.png", files.image_png(*size, number))
        label = COLORS[random_labels(*size, seed=number) % 3]
        files.put(tmp_path / f"l/{name}.png", files.coded(Image.fromarray(label), "PNG"))
    return files.dataset_yaml(tmp_path, YAML)


def joined(dataset, split, stem, shape, read):
    """Put the tiles of an image together again."""
    whole = np.zeros(shape, np.uint8)
    for sample in dataset.split(split):
        name, top, left = sample.image.removesuffix(".png").rsplit("_", 2)
        if name.endswith(stem):
            tile = read(sample)
            whole[int(top) :, int(left) :][: tile.shape[0], : tile.shape[1]] = tile
    return whole


def test_tiles_hold_every_pixel_of_images_and_labels(city, tmp_path):
    before = prepare_dataset(str(city), root=tmp_path).dataset
    tiles = udaseg.tile(city, tmp_path / "tiles", size=32, root=tmp_path)
    assert tiles.counts == {"train": 14, "val": 1}  # 3 x 4, 1 x 2
    report = prepare_dataset(str(tiles.path), root=tmp_path)
    after = report.dataset
    assert report.counts == tiles.counts
    assert after.classes == before.classes
    assert {(s.height, s.width) for s in after.split("train")} == {(32, 32), (20, 32)}
    for split, samples in before.splits.items():
        for sample in samples:
            stem = sample.image.partition("/")[2].replace(".", "_")
            image = before.read_image(sample)
            again = joined(after, split, stem, image.shape, after.read_image)
            np.testing.assert_array_equal(again, image)
            label = before.read_labels(sample)
            assert 255 in label
            again = joined(after, split, stem, label.shape, after.read_labels)
            np.testing.assert_array_equal(again, label)


def test_a_folder_of_photos_is_tiled_without_labels(tmp_path):
    for name in ("a.png", "a.jpg"):
        files.put(tmp_path / "photos" / name, files.image_png(20, 40, 0))
    tiles = udaseg.tile(tmp_path / "photos", tmp_path / "tiles", size=20, root=tmp_path)
    assert tiles.counts == {"train": 4}
    dataset = open_dataset(str(tiles.path), root=tmp_path)
    assert dataset.classes is None
    assert len(dataset.split("train")) == 4


def test_a_split_without_labels_stays_one(tmp_path):
    for split, labelled in (("train", True), ("test", False)):
        files.put(tmp_path / f"i/{split}/0.png", files.image_png(20, 20, 0))
        if labelled:
            label = Image.fromarray(COLORS[random_labels(20, 20) % 3])
            files.put(tmp_path / f"l/{split}/0.png", files.coded(label, "PNG"))
    yaml = files.dataset_yaml(tmp_path, YAML.replace(", val: l/val/*", "").replace("val", "test"))
    tiles = udaseg.tile(yaml, tmp_path / "tiles", size=16, root=tmp_path)
    report = prepare_dataset(str(tiles.path), root=tmp_path)
    assert (report.counts, report.unlabelled) == ({"train": 4, "test": 4}, ("test",))


def test_a_folder_that_holds_something_and_wrong_words_are_refused(city, tmp_path, capsys):
    with pytest.raises(UsageError, match="i: holds something; name an empty or a new folder"):
        udaseg.tile(city, tmp_path / "i", root=tmp_path)
    with pytest.raises(UsageError, match="at least 16 pixels, got 8"):
        udaseg.tile(city, tmp_path / "tiles", size=8, root=tmp_path)
    for inside in ("i/train/tiles", "i/train/far/a/b"):
        with pytest.raises(UsageError, match=r"lies in .*, a folder of the images"):
            udaseg.tile(city, tmp_path / inside, root=tmp_path)
    assert not (tmp_path / "i/train/tiles").exists()
    with pytest.raises(DataError, match="nope: no prepared dataset"):
        udaseg.tile("nope", tmp_path / "tiles", root=tmp_path)
    assert not (tmp_path / "tiles").exists()
    with pytest.raises(SystemExit) as stop:
        main(["tile", str(city), str(city)])
    assert stop.value.code == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_the_command_says_what_it_wrote_and_what_is_next(city, tmp_path, capsys):
    words = ["tile", str(city), str(tmp_path / "t 1"), "--size", "64", "--root", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "t 1/city-tiles.yaml: tiles train 5, val 1" in out
    assert f"next: udaseg prepare '{tmp_path}/t 1/city-tiles.yaml'" in out
