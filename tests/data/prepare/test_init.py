"""`udaseg init`: what it guesses of folders, and that `prepare` accepts the YAML that it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import udaseg
from tests.cli.running import udaseg as command
from tests.support import files
from tests.support.toy import TINY
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.labels.read import read_train_ids
from udaseg.errors import DataError, UsageError

SIZE = (48, 64)
SQUARE = [[8, 8], [39, 8], [39, 31], [8, 31]]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _ids(low=1, high=2):
    ids = np.full(SIZE, low)
    ids[8:32, 8:40] = high
    return ids


def _images(*names, suffix=".png"):
    for number, name in enumerate(names):
        kind = "JPEG" if suffix == ".jpg" else "PNG"
        files.put(
            Path(f"{name}{suffix}"), files.coded(Image.fromarray(files.noise(*SIZE, number)), kind)
        )


def _labels(*names, ids=None):
    for name in names:
        files.put(Path(f"{name}.png"), files.gray_png(_ids() if ids is None else ids))


def _labelme(*labels):
    shapes = [{"label": label, "points": SQUARE, "shape_type": "polygon"} for label in labels]
    document = {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return json.dumps(document).encode()


def _coco(*names):
    square = [part for point in SQUARE for part in point]
    return json.dumps({
        "images": [{"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
                   for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "segmentation": [square]}
                        for n in range(len(names))],
    }).encode()  # fmt: skip


def _prepared(report):
    (prepared,) = udaseg.prepare(report.path)
    (sample, *_) = prepared.dataset.splits["train"]
    return prepared, read_train_ids(prepared.dataset.label_path(sample))


def test_ids_with_equal_names():
    _images("images/train/0", "images/train/1", "images/val/2")
    _labels("labels/train/0", "labels/train/1", "labels/val/2")
    report = udaseg.init_dataset("my_city", "images", "labels")
    assert (str(report.path), report.unpaired) == ("my_city.yaml", 0)
    assert report.counts == {"train": 2, "val": 1}
    assert (report.label_format, report.classes) == ("ids", 2)
    text = report.path.read_text()
    assert "images: images/**/*.png\nlabels: labels/**/*.png\n" in text
    assert "  - {name: class_2, ids: [2]}   # 25.00 % of the pixels\n" in text
    _, label = _prepared(report)
    np.testing.assert_array_equal(label, _ids(0, 1))


def test_published_names_of_cityscapes():
    names = [f"aachen/aachen_00000{n}_000019" for n in range(3)]
    _images(*(f"c/left/{name}_leftImg8bit" for name in names))
    ids = np.kron(np.array([[7, 8, 11, 21], [23, 24, 26, 0]]), np.ones((24, 16), int))
    for name in names:
        _labels(f"c/gt/{name}_gtFine_labelIds", f"c/gt/{name}_gtFine_instanceIds", ids=ids)
        _labels(f"c/gt/{name}_gtFine_color", ids=ids)
        files.put(Path(f"c/gt/{name}_gtFine_polygons.json"), b"{}")
    report = udaseg.init_dataset("city", "c/left", "c/gt")
    declaration = read_declaration(report.path)
    assert declaration.labels == {"": "c/gt/**/*_gtFine_labelIds.png"}
    assert declaration.stem_endings == ("_leftImg8bit", "_gtFine_labelIds")
    assert declaration.table.classes.names[:2] == ("road", "sidewalk")
    assert report.counts == {"train": 3}


def test_masks_beside_their_images_with_a_class_file():
    _images("set/0", "set/1", "set/10", suffix=".jpg")
    _labels("set/0_mask", "set/1_mask", "set/10_mask", ids=_ids(0, 1))
    Path("set/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n")
    report = udaseg.init_dataset("roboflow", "set", "set")
    prepared, label = _prepared(report)
    assert prepared.classes == ("background", "car")
    assert prepared.counts == {"train": 3}
    np.testing.assert_array_equal(label, _ids(0, 1))


def test_binary_masks_and_void():
    _images("i/0")
    _labels("l/0", ids=_ids(0, 255))
    report = udaseg.init_dataset("binary", "i", "l")
    assert "{name: foreground, ids: [255]}" in report.path.read_text()
    np.testing.assert_array_equal(_prepared(report)[1], _ids(0, 1))
    ids = _ids(0, 255)
    ids[40:] = 1
    _labels("l/0", ids=ids)
    report = udaseg.init_dataset("binary", "i", "l", overwrite=True)
    assert "ignore: [255]   # 25.00 % of the pixels" in report.path.read_text()


def test_colours():
    _images("i/0")
    colors = np.array([[0, 0, 0], [128, 64, 128], [9, 200, 30]], np.uint8)[_ids()]
    files.put(Path("l/0.png"), files.coded(Image.fromarray(colors), "PNG"))
    report = udaseg.init_dataset("rgb", "i", "l")
    prepared, label = _prepared(report)
    assert (report.label_format, prepared.classes) == ("rgb", ("color_09c81e", "color_804080"))
    np.testing.assert_array_equal(label, _ids(1, 0))


def test_labelme_files_beside_their_images():
    _images("set/a", "set/b")
    files.put(Path("set/a.json"), _labelme("car"))
    files.put(Path("set/b.json"), _labelme("yes"))
    report = udaseg.init_dataset("shapes", "set", "set")
    assert (report.label_format, report.counts) == ("labelme", {"train": 2})
    prepared, label = _prepared(report)
    assert prepared.classes == ("background", "car", "yes")
    np.testing.assert_array_equal(label > 0, _ids(0, 1) > 0)


@pytest.mark.parametrize("labels", ["ann/instances.json", "ann"])
def test_a_coco_file_outside_of_the_folder_of_the_yaml(tmp_path, monkeypatch, labels):
    pytest.importorskip("faster_coco_eval")
    _images("photos/a/0", "photos/b/0")
    files.put(Path("ann/instances.json"), _coco("a/0.png", "b/0.png"))
    Path("work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    report = udaseg.init_dataset("objects", "../photos", f"../{labels}")
    assert f"root: {tmp_path}" in report.path.read_text()
    prepared, label = _prepared(report)
    assert (report.label_format, prepared.classes) == ("coco", ("background", "car"))
    assert label[10, 10] == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_splits_with_folders_of_images_and_labels(suffix, caplog):
    for split in ("train", "valid"):
        _images(f"set/{split}/images/0", f"set/{split}/images/1", suffix=suffix)
        _labels(f"set/{split}/labels/0", f"set/{split}/labels/1")
    report = udaseg.init_dataset("city", "set", "set")
    assert (report.counts, report.unpaired) == ({"train": 2, "val": 2}, 0)
    prepared, label = _prepared(report)
    assert prepared.counts == {"train": 2, "val": 2}
    assert (label[10, 10], label[0, 0]) == (1, 0)
    assert "seem to be labels" not in caplog.text
    report = udaseg.init_dataset("photos", "set")
    assert report.counts == {"train": 8}
    assert "4 of 8 images seem to be labels, such as set/train/labels/0.png" in caplog.text
    assert "`udaseg init photos set set` reads them so" in caplog.text


def test_masks_are_told_from_images_of_their_folder_by_their_names(caplog):
    _images("set/0", "set/1")
    _labels("set/0_mask", "set/1_mask")
    report = udaseg.init_dataset("city", "set", "set")
    assert (report.counts, report.label_format) == ({"train": 2}, "ids")
    udaseg.init_dataset("photos", "set")
    assert "2 of 4 images seem to be labels, such as set/0_mask.png" in caplog.text


def test_images_alone():
    _images("photos/a", "photos/b/c")
    report = udaseg.init_dataset("target", "photos")
    assert (report.counts, report.label_format) == ({"train": 2}, None)
    assert udaseg.prepare(report.path)[0].unlabelled == ("train",)


def test_swapped_folders_are_refused():
    _images("photos/0", suffix=".jpg")
    _labels("masks/0")
    with pytest.raises(DataError, match=r"photos: these are JPEG .* are IMAGES and LABELS swapped"):
        udaseg.init_dataset("city", "masks", "photos")


def test_labels_of_another_size_are_warned_of(caplog):
    _images("images/0")
    _labels("labels/0", ids=_ids()[:24])
    udaseg.init_dataset("city", "images", "labels")
    assert "has 64x48 pixels, and its label labels/0.png has 64x24" in caplog.text


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("x", "gone"), DataError, "gone: does not exist"),
        (("x", "empty"), DataError, "empty: contains no images"),
        (("x", "i", "empty"), DataError, "empty: contains no label files"),
        (("x", "i", "other"), DataError, "other: no label has the name of an image; there are z"),
        (("x", "i", "other/z0.json"), DataError, "z0.json: is not a file of COCO, CVAT"),
        (("x", "i", "masks"), DataError, "masks: no label has the name of an image; there are q"),
        (("x", "i", "masks/q.png"), DataError, "q.png: is not a file of COCO.*name the folder"),
        (("x", "i/a.png"), DataError, "a.png: is a file; name a folder of images"),
        (("here", "i", "i"), UsageError, r"here.yaml: exists; use --overwrite"),
        (("same", "mixed", "mixed"), DataError, "mixed: move labels to a folder without images"),
        (("gta5", "i"), UsageError, "'gta5' is a built-in data set"),
        (("a b", "i"), UsageError, "a name has letters, digits, .*, got 'a b'"),
    ],
)
def test_what_cannot_be_guessed_is_refused(words, error, said):
    _images("i/a", "i/b", "mixed/a", "mixed/b")
    Path("empty").mkdir()
    for number in range(9):
        files.put(Path(f"other/z{number}.json"), b"{}")
    _images("masks/q")
    Path("here.yaml").write_text("name: here\n")
    with pytest.raises(error, match=said):
        udaseg.init_dataset(*words)
    assert Path("here.yaml").read_text() == "name: here\n"
    assert not Path(f"{words[0]}.yaml").exists() or words[0] == "here"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ids", "labelme", "coco"])
def test_ten_minutes_from_folders_to_masks(layout):
    if layout == "coco":
        pytest.importorskip("faster_coco_eval")
    names = [f"images/{n:02}" for n in range(20)]
    _images(*names)
    for name in names:
        label = name.replace("images", "labels")
        if layout == "ids":
            _labels(f"{label}_mask")
        elif layout == "labelme":
            files.put(Path(f"{label}.json"), _labelme("car"))
    if layout == "coco":
        files.put(Path("labels/instances.json"), _coco(*(f"{name[7:]}.png" for name in names)))
    shutil.copytree("images", "photos")
    here = Path.cwd()
    said = command("init", "my_city", "images/", "labels/", cwd=here).stdout
    assert "my_city.yaml: images train 18, val 2; labels" in said
    assert "next: check the classes in my_city.yaml, then udaseg prepare my_city.yaml" in said
    command("prepare", "my_city.yaml", cwd=here)
    data = ("--source", "my_city", "--target", "photos")
    command("adapt", "own/light", *data, "--steps", 2, "--out", "runs/own", *TINY, cwd=here)
    command("report", "runs/own", cwd=here)
    command("predict", "photos", cwd=here)
    assert len(list(here.glob("masks/ids/*.png"))) == 20
    assert list(here.rglob("report.html"))
