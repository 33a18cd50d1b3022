"""Data sets as annotation tools and people store them, prepared from end to end."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.doctor.doctor import doctor
from udaseg.data.labels.read import read_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError

SIZE = (6, 8)
SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3]]  # labelme draws its border: rows 1 to 3, columns 1 to 4


def _images(folder, *names):
    for number, name in enumerate(names):
        files.put(folder / name, files.image_png(*SIZE, number))


def _prepare(folder, text, **options):
    yaml = files.dataset_yaml(folder, f"name: own\n{text}")
    return prepare_dataset(str(yaml), root=folder, options=PrepareOptions(**options))


def _labels(report):
    return {
        sample.image: read_train_ids(report.dataset.label_path(sample))
        for samples in report.dataset.splits.values()
        for sample in samples
    }


def _labelme(*labels, polygon=SQUARE):
    shapes = [{"label": label, "points": polygon, "shape_type": "polygon"} for label in labels]
    return json.dumps({"shapes": shapes, "imageHeight": 6, "imageWidth": 8}).encode()


def _coco(names, labels=("car",)):
    part = np.zeros(SIZE, int)
    part[1:4, 1:5] = 1
    runs = np.diff([0, *(np.flatnonzero(np.diff(part.T.ravel())) + 1), part.size]).tolist()
    return json.dumps({
        "images": [{"id": number, "file_name": name, "height": 6, "width": 8}
                   for number, name in enumerate(names)],
        "categories": [{"id": 3, "name": "car"}, {"id": 9, "name": "tree"}],
        "annotations": [{"id": number, "image_id": number, "category_id": {"car": 3, "tree": 9}[x],
                         "segmentation": {"size": list(SIZE), "counts": runs}}
                        for number in range(len(names)) for x in labels],
    }).encode()  # fmt: skip


def _expected(inside, outside):
    expected = np.full(SIZE, outside)
    expected[1:4, 1:5] = inside
    return expected


def test_pixels_without_an_object_are_background_or_ignored(tmp_path):
    _images(tmp_path, "i/0.png")
    files.put(tmp_path / "l/0.json", _labelme("car"))
    text = "images: i/*.png\nlabels: l/*.json\nlabel_format: labelme\nclasses: "
    (with_background,) = _labels(_prepare(tmp_path, f"{text}[background, car]\n")).values()
    np.testing.assert_array_equal(with_background, _expected(1, 0))
    (without,) = _labels(_prepare(tmp_path, f"{text}[car]\n")).values()
    np.testing.assert_array_equal(without, _expected(0, 255))
    (merged,) = _labels(
        _prepare(tmp_path, f"{text}[{{name: all, of: [car, background]}}, other]\n")
    ).values()
    np.testing.assert_array_equal(merged, _expected(0, 0))


def test_labels_without_a_class_are_listed_and_can_be_ignored(tmp_path):
    _images(tmp_path, "i/0.png")
    files.put(tmp_path / "l/0.json", _labelme("car", "dog"))
    text = "images: i/*.png\nlabels: l/*.json\nlabel_format: labelme\nclasses: [background, car]\n"
    with pytest.raises(DataError, match=r"objects that are in no class .*\n  dog: 12 pixels"):
        _prepare(tmp_path, text)
    yaml = str(files.dataset_yaml(tmp_path, f"name: own\n{text}"))
    (unknown,) = [each for each in doctor(yaml, root=tmp_path).errors if each.code == "unknown-id"]
    assert unknown.amounts == {"dog": 12}
    (label,) = _labels(_prepare(tmp_path, f"{text}ignore: [dog]\n")).values()
    np.testing.assert_array_equal(label, _expected(255, 0))


def test_a_coco_file_is_matched_by_the_ends_of_paths(tmp_path, caplog):
    pytest.importorskip("faster_coco_eval")
    _images(tmp_path, "i/train/a/0.png", "i/train/b/0.png", "i/val/x.png")
    names = ["C:\\data\\a\\0.jpg", "/home/me/set/b/0.png", "x.jpg", "gone/y.png"]
    files.put(tmp_path / "instances.json", _coco(names))
    text = "images: {train: i/train/**/*.png, val: i/val/*.png}\nlabels: instances.json\n"
    text += "label_format: coco\nclasses: [background, car, tree]\n"
    report = _prepare(tmp_path, text)
    labels = _labels(report)
    assert set(labels) == {"i/train/a/0.png", "i/train/b/0.png", "i/val/x.png"}
    for label in labels.values():
        np.testing.assert_array_equal(label, _expected(1, 0))
    assert "instances.json: 1 of 4 listed images are not in the data set, such as" in caplog.text
    assert _prepare(tmp_path, text).unchanged
    files.put(tmp_path / "instances.json", _coco(names, ("tree",)))
    np.testing.assert_array_equal(_labels(_prepare(tmp_path, text))["i/val/x.png"], _expected(2, 0))
    diagnosis = doctor(str(tmp_path / "own.yaml"), root=tmp_path)
    assert not diagnosis.errors


def test_an_entry_that_can_mean_several_images_is_named(tmp_path, caplog):
    _images(tmp_path, "i/a/0.png", "i/b/0.png")
    files.put(tmp_path / "instances.json", _coco(["0.png", "a/0.jpg", "/data/a/0.png"]))
    text = "images: i/**/*.png\nlabels: instances.json\nlabel_format: coco\nclasses: [car]\n"
    with pytest.raises(DataError, match=r"i/a/0.png: has no label \(instances.json\)"):
        _prepare(tmp_path, text)
    assert f"0.png can mean {tmp_path}/i/a/0.png or {tmp_path}/i/b/0.png" in caplog.text
    assert f"a/0: is listed 2 times, first in {tmp_path}/instances.json" in caplog.text


def test_equal_names_are_matched_by_what_the_wildcards_stand_for(tmp_path):
    for place, ids in (("Urban", 1), ("Rural", 2)):
        _images(tmp_path, f"Train/{place}/images_png/0.png", f"Train/{place}/images_png/1.png")
        for name in "01":
            data = files.gray_png(np.full(SIZE, ids + 2 * int(name)))
            files.put(tmp_path / f"Train/{place}/masks_png/{name}.png", data)
    text = "images: Train/*/images_png/*.png\nlabels: Train/*/masks_png/*.png\n"
    text += "classes: [a, b, c, d]\n"
    labels = _labels(_prepare(tmp_path, f"{text}ignore: [4]\n"))
    urban, rural = "Train/Urban/images_png", "Train/Rural/images_png"
    assert {name: int(label.max()) for name, label in labels.items()} == {
        f"{urban}/0.png": 1,
        f"{rural}/0.png": 2,
        f"{urban}/1.png": 3,
        f"{rural}/1.png": 255,
    }


def test_names_that_stay_ambiguous_are_listed_with_both_files(tmp_path):
    _images(tmp_path, "i/a/x/0.png", "i/b/y/0.png", "i/a/x/1.png")
    for name in ("c/0.png", "d/0.png", "c/1.png"):
        files.put(tmp_path / "l" / name, files.gray_png(np.ones(SIZE, int)))
    text = "images: i/**/*.png\nlabels: l/**/*.png\nclasses: [a, b]\n"
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, text)
    assert f"{tmp_path}/i/a/x/0.png: has the same name as {tmp_path}/i/b/y/0.png" in str(
        caught.value
    )
    assert f"{tmp_path}/l/d/0.png: has the same name as {tmp_path}/l/c/0.png" in str(caught.value)
    assert list(_labels(_prepare(tmp_path, text, max_bad=4))) == ["i/a/x/1.png"]


def test_arrays_gifs_and_equal_channels_hold_ids(tmp_path, caplog):
    ids = np.random.default_rng(0).integers(0, 3, SIZE)
    caplog.set_level("INFO")
    _images(tmp_path, *(f"i/{name}.png" for name in "abcde"))
    gif = Image.fromarray(ids.astype(np.uint8))
    gif.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    (tmp_path / "l").mkdir()
    gif.save(tmp_path / "l/a.gif")
    np.save(tmp_path / "l/b.npy", ids.astype(np.uint8))
    np.save(tmp_path / "l/c.npy", ids[None])
    Image.fromarray(np.repeat(ids.astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "l/d.png")
    np.save(tmp_path / "l/e.npy", np.asfortranarray(ids.astype(np.int16)))
    report = _prepare(tmp_path, "images: i/*\nlabels: l/*\nclasses: {0: a, 1: b, 2: c}\n")
    for label in _labels(report).values():
        np.testing.assert_array_equal(label, ids)
    assert caplog.text.count("labels with three equal channels are read as ids") == 1


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(SIZE), r"\(height, width\) whole numbers, but the array is float64 \(6, 8\)"),
        (np.zeros((6, 8, 3), int), r"whole numbers, but the array is int64 \(6, 8, 3\)"),
        (np.array([{}]), "cannot be decoded: Object arrays cannot be loaded"),
    ],
)  # fmt: skip
def test_an_array_that_holds_no_ids_is_refused(tmp_path, array, said):
    _images(tmp_path, "i/0.png")
    (tmp_path / "l").mkdir()
    np.save(tmp_path / "l/0.npy", array)
    with pytest.raises(DataError, match=said):
        _prepare(tmp_path, "images: i/*\nlabels: l/*\nclasses: [a]\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, car\n7, tree\n"),
        ("class_dict.csv", "name,id,r,g,b\nbackground,0,0,0,0\ncar,1,200,0,0\ntree,7,0,9,0\n"),
        ("label_classes.json", '[{"class_name": "background", "id": 0}, {"class_name": "car", '
         '"id": 1, "color": "#c80000"}, {"class_name": "tree", "id": 7}]'),
        ("meta.json", '{"background": 0, "car": 1, "tree": 7}'),
        ("meta.json", '{"0": "background", "1": "car", "7": "tree"}'),
    ],
)  # fmt: skip
def test_classes_come_from_a_file_beside_the_data(tmp_path, name, text):
    _images(tmp_path, "i/0.png")
    ids = np.array([[0, 1], [7, 7]]).repeat(3, 0).repeat(4, 1)
    files.put(tmp_path / "l/0.png", files.gray_png(ids))
    (tmp_path / name).write_text(text)
    yaml = f"images: i/*\nlabels: l/*\nclasses: {name}\n"
    report = _prepare(tmp_path, yaml)
    assert report.classes == ("background", "car", "tree")
    (label,) = _labels(report).values()
    np.testing.assert_array_equal(label, np.select([ids == 7, ids == 1], [2, 1]))
    if "c80000" in text or "200,0,0" in text:
        assert report.dataset.classes.colors[1] == (200, 0, 0)
    (label,) = _labels(_prepare(tmp_path, f"{yaml}ignore: [background]\n")).values()
    np.testing.assert_array_equal(label, np.select([ids == 7, ids == 1], [1, 0], 255))


def test_the_label_map_of_cvat_gives_names_and_colours(tmp_path):
    _images(tmp_path, "i/0.png")
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[1:4, 1:5] = (250, 50, 83)
    (tmp_path / "l").mkdir()
    Image.fromarray(colors).save(tmp_path / "l/0.png")
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\n"
    (tmp_path / "labelmap.txt").write_text(lines)
    yaml = "images: i/*\nlabels: l/*\nlabel_format: rgb\nclasses: labelmap.txt\n"
    (label,) = _labels(_prepare(tmp_path, yaml)).values()
    np.testing.assert_array_equal(label, _expected(1, 0))
    (label,) = _labels(_prepare(tmp_path, f"{yaml}ignore: [background]\n")).values()
    np.testing.assert_array_equal(label, _expected(0, 255))


def test_the_label_list_of_labelme_counts_from_what_is_not_ignored(tmp_path):
    _images(tmp_path, "i/0.png")
    files.put(tmp_path / "l/0.png", files.gray_png(_expected(1, 0)))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\n")
    report = _prepare(tmp_path, "images: i/*\nlabels: l/*\nclasses: labels.txt\n")
    assert report.classes == ("background", "car")
    np.testing.assert_array_equal(next(iter(_labels(report).values())), _expected(1, 0))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("gone.csv", r"6:1: classes: there is no file .*gone.csv"),
        ("bad.csv", r"6:1: classes: .*bad.csv: has no column with names"),
        ("bad.json", r"6:1: classes: .*bad.json: is not a list of classes"),
        ("{sky: road}", "6:1: classes: must map ids to names, got sky: road"),
        ("[{name: a, ids: [3]}]", "6:11: .*: label_format labelme has labels, not ids: write `of:"),
        ("[{name: a, of: [x]}, {name: b, of: [x]}]", "label 'x' belongs to both a and b"),
        ("citiscapes19", "no table 'citiscapes19'; did you mean 'cityscapes19'"),
    ],
)
def test_a_class_list_that_cannot_be_read_is_refused(tmp_path, classes, said):
    _images(tmp_path, "i/0.png")
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n")
    (tmp_path / "bad.json").write_text("3")
    text = "images: i/*\nlabels: l/*\nlabel_format: labelme\n\nclasses: "
    with pytest.raises(DataError, match=said):
        _prepare(tmp_path, f"{text}{classes}\n")


def test_names_with_other_endings_are_told_how_to_match(tmp_path):
    _images(tmp_path, "i/00_img.png", "i/01_img.png")
    for name in ("00_mask", "01_mask"):
        files.put(tmp_path / f"l/{name}.png", files.gray_png(np.ones(SIZE, int)))
    text = "images: i/*\nlabels: l/*\nclasses: [a, b]\n"
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, text)
    (advice,) = [line for line in str(caught.value).splitlines() if "match:" in line]
    assert advice.endswith("write `match: {strip: [_img, _mask]}`")
    assert "--max-bad" not in str(caught.value)
    assert _prepare(tmp_path, f"{text}match: {{strip: [_img, _mask]}}\n").counts == {"train": 2}


def test_labels_that_are_all_wrong_are_named_once(tmp_path):
    _images(tmp_path, *(f"{folder}/{number}.png" for folder in "il" for number in range(3)))
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, "images: i/*\nlabels: l/*\nclasses: [a, b]\n")
    first, advice = str(caught.value).splitlines()
    assert first.startswith(f"own: none of the 3 files can be used, such as {tmp_path}/l/")
    assert first.endswith("use label_format rgb for colour-coded labels")
    assert advice == "  fix them; no other file would be left"


def test_a_glob_of_labels_without_a_match_says_what_is_there(tmp_path):
    _images(tmp_path, "i/0.png")
    files.put(tmp_path / "l/0.npy", b"x")
    with pytest.raises(DataError, match=r"no label matches l/\*.png\n  files there: .npy \(1\)\n"):
        _prepare(tmp_path, "images: i/*\nlabels: l/*.png\nclasses: [a, b]\n")
