"""`open_dataset`: accepted names and paths, and the returned datasets."""

import logging
import threading

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.open import open_dataset, open_image_folder
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.toyland.writer import make_toyland, write
from udaseg.errors import DataError

COUNTS = {"source/train": 2, "source/val": 1, "target/train": 2, "target/val": 1}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Make every generated toyland tiny."""

    def small(folder, *, seed, size, workers, on_progress):
        write(folder, seed=seed, size=(64, 128), counts=COUNTS)

    monkeypatch.setattr("udaseg.data.toyland.writer.write", small)
    return tmp_path


def test_toyland_is_made_when_it_is_asked_for(toy):
    source, target = (open_dataset(name, root=toy) for name in ("toyland", "toyland-target"))
    assert source.classes == target.classes == builtin_label_table("toyland13").classes
    assert [len(source.splits[split]) for split in ("train", "val")] == [2, 1]
    assert all(sample.label is None for sample in target.splits["train"])
    assert all(sum(sample.class_pixels) > 0.9 * 64 * 128 for sample in target.splits["val"])
    assert open_dataset("toyland", root=toy) == source


def test_toyland_asked_for_twice_at_once_is_made_once(toy):
    datasets = []
    threads = [
        threading.Thread(target=lambda: datasets.append(open_dataset("toyland", root=toy)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(datasets) == 3
    assert datasets[0] == datasets[1] == datasets[2]


def test_toyland_of_another_seed_is_not_overwritten(toy):
    make_toyland(toy, seed=3)
    with pytest.raises(DataError, match="other settings"):
        make_toyland(toy, seed=4)


def test_a_yaml_is_prepared_when_it_is_opened_and_then_open_by_its_name(tmp_path, caplog):
    files.put(tmp_path / "mine/i/x.png", files.image_png())
    yaml = files.dataset_yaml(tmp_path / "mine", "name: own\nimages: i/*.png\n")
    with caplog.at_level(logging.INFO, "udaseg"):
        dataset = open_dataset(str(yaml), root=tmp_path)
        assert [record.message for record in caplog.records] == [
            f"prepared {yaml} in {tmp_path / 'prepared/own'}"
        ]
        caplog.clear()
        assert open_dataset(str(yaml), root=tmp_path) == dataset
        assert open_dataset("own", root=tmp_path) == dataset
        assert not caplog.records


def test_a_prepared_set_opens_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    files.put(tmp_path / "mine/i/x.png", files.image_png())
    yaml = files.dataset_yaml(tmp_path / "mine", "name: own\nimages: i/*.png\n")
    dataset = prepare_dataset(str(yaml), root=tmp_path).dataset

    def refuse(path):
        raise AssertionError(f"{path} would be written")

    monkeypatch.setattr("udaseg.data.prepare.prepare.file_lock", refuse)
    assert open_dataset(str(yaml), root=tmp_path) == dataset


def test_a_known_set_that_is_not_prepared_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="run `udaseg prepare cityscapes`"):
        open_dataset("cityscapes", root=tmp_path)


@pytest.mark.parametrize("name", ["cityscape", "own2", "../own", "", ".", "/nowhere", "a/b"])
def test_an_unknown_name_is_refused(tmp_path, monkeypatch, name):
    files.put(tmp_path / "mine/i/x.png", files.image_png())
    yaml = files.dataset_yaml(tmp_path / "mine", "name: own\nimages: i/*.png\n")
    open_dataset(str(yaml), root=tmp_path / "data")
    files.put(tmp_path / "data/prepared/.own.tmp/index.json", b"{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError) as caught:
        open_dataset(name, root=tmp_path / "data")
    message = str(caught.value)
    if name in ("cityscape", "own2"):
        expected = {"cityscape": "cityscapes", "own2": "own"}[name]
        assert f"did you mean '{expected}'?" in message
        assert "(prepared here: own)" in message


def test_a_folder_is_an_unlabelled_set_of_all_its_images(tmp_path):
    folder = tmp_path / "dir[1]"
    picture = Image.fromarray(files.noise(4, 6))
    for name, kind in (
        ("b/x.jpg", "JPEG"),
        ("a.PNG", "PNG"),
        ("b/c/y.bmp", "BMP"),
        ("b/z.tif", "TIFF"),
        ("w.webp", "WEBP"),
    ):
        files.put(folder / name, files.coded(picture, kind))
    for name in ("notes.txt", ".hidden.png", "b/._x.jpg", "b/film.mp4"):
        files.put(folder / name, b"nothing")
    dataset = open_dataset(str(folder), root=tmp_path / "data")
    assert dataset.classes is None
    assert [sample.image for sample in dataset.splits["train"]] == [
        *("a.PNG", "b/c/y.bmp", "b/x.jpg", "b/z.tif", "w.webp")
    ]
    assert {(s.height, s.width, s.label) for s in dataset.splits["train"]} == {(4, 6, None)}
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match="no label"):
        dataset.label_path(dataset.splits["train"][0])


def test_a_folder_reached_by_two_ways_is_read_once(tmp_path):
    files.put(tmp_path / "a/x.png", files.image_png())
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    assert len(open_image_folder(tmp_path / "a").splits["train"]) == 1


def test_files_in_a_folder_that_cannot_be_read_are_all_named(tmp_path):
    for number in range(14):
        files.put(tmp_path / f"x{number:02d}.png", b"" if number else files.image_png())
    with pytest.raises(DataError) as caught:
        open_dataset(str(tmp_path), root=tmp_path / "data")
    message = str(caught.value)
    assert "13 images cannot be read" in message
    assert "x01.png: is empty" in message
    assert "and 3 more" in message


def test_a_folder_without_images_is_refused_with_what_it_has(tmp_path):
    files.put(tmp_path / "x/notes.txt", b"hello")
    with pytest.raises(DataError, match=r"no images \(\.png.*; it has 1 file of other types: .txt"):
        open_dataset(str(tmp_path / "x"), root=tmp_path)


def test_the_files_of_a_folder_that_are_left_out_are_named(tmp_path, caplog):
    files.put(tmp_path / "x/a/0.png", files.image_png())
    for name in ("a/1.gif", "2.GIF", ".hidden"):
        files.put(tmp_path / "x" / name, b"GIF89a")
    assert len(open_dataset(str(tmp_path / "x"), root=tmp_path).splits["train"]) == 1
    assert caplog.messages == [f"{tmp_path / 'x'}: left out 2 files of other types: .gif (2)"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "classes": 3}']
)
def test_an_index_that_cannot_be_read_says_to_prepare_again(tmp_path, text):
    files.put(tmp_path / "prepared/own/index.json", text.encode())
    with pytest.raises(DataError, match="udaseg prepare") as caught:
        open_dataset("own", root=tmp_path)
    assert "index.json" in str(caught.value)


def test_the_pair_of_the_measurements_opens_by_its_yaml(sample_data, tmp_path):
    """Open a few files of each split in the layout of the full pair."""
    real = sample_data / "synstreet2camvid"
    for part in ("source/train", "source/val"):
        for path in sorted((real / part / "images").iterdir())[:2]:
            label = real / part / "labels" / f"{path.stem}.png"
            for file in (path, label):
                files.put(tmp_path / file.relative_to(real), file.read_bytes())
    yaml = files.dataset_yaml(
        tmp_path,
        "name: own\nclasses: camvid11\n"
        "images: {train: source/train/images/*.jpg, val: source/val/images/*.jpg}\n"
        "labels: {train: source/train/labels/*.png, val: source/val/labels/*.png}\n",
    )
    dataset = open_dataset(str(yaml), root=tmp_path / "data")
    for sample in (*dataset.splits["train"], *dataset.splits["val"]):
        stored = sample.image.replace("images", "labels").replace(".jpg", ".png")
        with Image.open(tmp_path / stored) as opened:
            counts = np.bincount(np.asarray(opened).ravel(), minlength=256)
        assert sample.class_pixels == tuple(counts[:11].tolist())
        assert (sample.height, sample.width) == (360, 480)
