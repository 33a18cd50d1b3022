"""Preparing datasets in their published layouts: discovery, checks, conversion and errors."""

import hashlib
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.datasets.index import read_index
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError
from udaseg.text import printable

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = (6, 8)
RULED = "match: {strip: [_img, _lab]}\n"


def _ids(known, seed=0, size=SIZE):
    return np.random.default_rng(seed).choice(known, size)


def _own(folder, *, pairs=3, top="", labels=None, split="splits: {train: 1.0}\n"):
    """Write a small dataset with grey label ids 0..2 and return the path of its YAML."""
    for number in range(pairs):
        files.put(folder / f"images/{number}.png", files.image_png(*SIZE, number))
        ids = _ids([0, 1, 2], number) if labels is None else labels
        files.put(folder / f"labels/{number}.png", files.gray_png(ids))
    text = f"name: own\nimages: images/**/*.png\nlabels: labels/**/*.png\n{top}{split}"
    return files.dataset_yaml(folder, text + "classes: [a, b, c]\nignore: [255]\n")


def _tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _labels(dataset, split="train"):
    return {
        sample.image: read_train_ids(dataset.label_path(sample)) for sample in dataset.splits[split]
    }


def _refused(yaml, root, **how):
    with pytest.raises(DataError) as caught:
        prepare_dataset(str(yaml), root=root, options=PrepareOptions(**how))
    assert not (root / "prepared" / "own").exists()
    return str(caught.value)


# the published layouts

GTA5 = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11}
GTA5 |= {25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
SYNTHIA = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12}
SYNTHIA |= {19: 13, 12: 14, 11: 15}


@pytest.mark.parametrize("folder", ["gta5", "GTA5", "gta"])
def test_gta5_s_palette_labels_become_train_ids(tmp_path, folder):
    ids = np.arange(35 * 2).reshape(7, 10) % 35  # every id, including 34
    files.put(tmp_path / folder / "images/00001.png", files.image_png(7, 10))
    files.put(tmp_path / folder / "labels/00001.png", files.palette_png(ids))
    report = prepare_dataset("gta5", root=tmp_path)
    labels = _labels(report.dataset)["images/00001.png"]
    np.testing.assert_array_equal(labels, np.vectorize(lambda i: GTA5.get(i, IGNORE))(ids))
    assert report.dataset.splits["train"][0].class_pixels == (2,) * 19
    assert report.expected == {"train": 24966}


@pytest.mark.parametrize("folder", ["SYNTHIA/RAND_CITYSCAPES", "RAND_CITYSCAPES", "synthia"])
def test_synthia_s_sixteen_bit_labels_become_sixteen_classes(tmp_path, folder):
    ids = np.arange(23 * 2).reshape(2, 23) % 23
    files.put(tmp_path / folder / "RGB/0000000.png", files.image_png(2, 23))
    files.put(tmp_path / folder / "GT/LABELS/0000000.png", files.synthia_png(ids))
    dataset = prepare_dataset("synthia", root=tmp_path).dataset
    (labels,) = _labels(dataset).values()
    np.testing.assert_array_equal(labels, np.vectorize(lambda i: SYNTHIA.get(i, IGNORE))(ids))
    assert len(dataset.classes) == 16


def test_cityscapes_is_matched_by_city_and_frame(tmp_path):
    for split, city in (("train", "ulm"), ("train", "bonn"), ("val", "lindau")):
        name = f"{split}/{city}/{city}_000000_000019"
        files.put(
            tmp_path / f"Cityscapes/leftImg8bit/{name}_leftImg8bit.png", files.image_png(*SIZE)
        )
        for kind, ids in (("labelIds", [7, 26]), ("instanceIds", [7, 26001])):
            data = files.gray_png(_ids(ids), 8 if kind == "labelIds" else 16)
            files.put(tmp_path / f"Cityscapes/gtFine/{name}_gtFine_{kind}.png", data)
    dataset = prepare_dataset("cityscapes", root=tmp_path).dataset
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    sample = dataset.splits["val"][0]
    assert sample.image == "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"
    assert sum(sample.class_pixels) == 48
    assert sample.class_pixels[0] + sample.class_pixels[13] == 48


def test_camvid_keeps_its_eleven_classes_and_says_which_splits_are_not_there(tmp_path):
    for split in ("train", "val"):
        files.put(tmp_path / f"CamVid/{split}/0001.png", files.image_png(*SIZE))
        files.put(tmp_path / f"CamVid/{split}annot/0001.png", files.gray_png(_ids(range(12))))
    report = prepare_dataset("camvid", root=tmp_path)
    assert report.missing == ["test"]
    labels = _labels(report.dataset)["train/0001.png"]
    expected = _ids(range(12))
    np.testing.assert_array_equal(labels, np.where(expected == 11, IGNORE, expected))


def _slow_counts(path):
    """Count each value of an 8-bit grey or palette PNG with a simple decoder."""
    data = path.read_bytes()
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    assert depth == 8
    assert color in (0, 3)
    assert interlace == 0
    position, packed = 8, b""
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += 12 + length
    raw = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width + 1)
    counts, above = np.zeros(256, int), np.zeros(width, np.uint8)
    for kind, row in zip(raw[:, 0], raw[:, 1:], strict=True):
        above = _unfiltered(int(kind), row, above)
        counts += np.bincount(above, minlength=256)
    return counts


def _unfiltered(kind, row, above):
    if kind == 0:
        return row
    if kind == 1:
        return np.cumsum(row, dtype=np.uint8)
    if kind == 2:
        return row + above
    line, left, corner = [], 0, 0
    for value, up in zip(row.tolist(), above.tolist(), strict=True):
        guess = left + up - corner
        near = min((abs(guess - p), i, p) for i, p in enumerate((left, up, corner)))[2]
        left = (value + ((left + up) // 2 if kind == 3 else near)) & 255
        corner = up
        line.append(left)
    return np.array(line, np.uint8)


def test_the_genuine_cityscapes_files_are_counted_as_an_independent_decoder_counts(
    sample_data, tmp_path
):
    real = sample_data / "layouts/real/cityscapes"
    small = "frankfurt/frankfurt_000000_000294"
    for part in (f"leftImg8bit/val/{small}_leftImg8bit.png", f"gtFine/val/{small}_gtFine_labelIds"):
        source = real / part if part.endswith(".png") else real / f"{part}.png"
        files.put(tmp_path / "cityscapes" / source.relative_to(real), source.read_bytes())
    report = prepare_dataset("cityscapes", root=tmp_path)
    counts = _slow_counts(real / f"gtFine/val/{small}_gtFine_labelIds.png")
    (sample,) = report.dataset.splits["val"]
    assert sample.class_pixels == tuple(int(counts[i]) for i in GTA5)
    expected = np.asarray(
        Image.open(real / f"gtFine/val/{small}_gtFine_labelTrainIds.png"), np.uint8
    )
    # the two files of the sample were downscaled separately and differ in 77 of 32,768 pixels
    assert (_labels(report.dataset, "val")[sample.image] == expected).mean() > 0.997


def test_files_in_gta5_s_genuine_form_are_counted_as_an_independent_decoder_counts(
    sample_data, tmp_path
):
    (tmp_path / "GTA5").symlink_to(sample_data / "layouts/generated/gta5")
    for sample in prepare_dataset("gta5", root=tmp_path).dataset.splits["train"]:
        path = tmp_path / "GTA5" / sample.image.replace("images", "labels")
        counts = np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
        assert sample.class_pixels == tuple(int(counts[i]) for i in GTA5)


def test_the_genuine_kitti_files_differ_in_size_and_are_named(sample_data, tmp_path):
    real = sample_data / "layouts/real/kitti_semantics"
    yaml = files.dataset_yaml(
        tmp_path,
        f"name: own\nroot: {real}\nimages: training/image_2/*.png\n"
        "labels: training/semantic/*.png\nclasses: cityscapes19\n",
    )
    message = _refused(yaml, tmp_path)
    assert "nothing is left of split 'train'" in message
    assert "label 1242x375, image 1224x370" in message
    assert "--on-mismatch resize" in message


@pytest.mark.parametrize(
    ("name", "counts"),
    [("synstreet", {"train": 800, "val": 100}), ("camvid-drive", {"train": 406, "val": 171})],
)
@pytest.mark.slow
def test_the_real_pair_is_prepared(sample_data, tmp_path, monkeypatch, name, counts):
    monkeypatch.setenv("UDASEG_SYNSTREET2CAMVID", str(sample_data / "synstreet2camvid"))
    yaml = REPOSITORY / "recipes" / "datasets" / f"{name}.yaml"
    report = prepare_dataset(str(yaml), root=tmp_path)
    assert {split: len(samples) for split, samples in report.dataset.splits.items()} == counts
    assert report.unlabelled == (("train",) if name == "camvid-drive" else ())
    assert {(s.height, s.width) for samples in report.dataset.splits.values() for s in samples} == {
        (360, 480)
    }
    assert not report.bad
    assert not report.excluded


# custom datasets


def test_ten_lines_of_yaml_prepare_a_set_with_its_own_classes_and_merges(tmp_path):
    for number in range(4):
        files.put(tmp_path / f"images/d{number % 2}/{number}_img.jpg", _jpeg())
        ids = np.array([[300, 4, 65535], [9, 5, 0]])
        files.put(tmp_path / f"labels/{number}_lab.png", files.gray_png(ids, 16))
    files.put(tmp_path / "val.txt", b"\xef\xbb\xbf# the held-out ones\r\n3_img\r\n\r\n")
    files.put(tmp_path / "train.txt", b"images/d0/0_img.jpg\n1_img.jpg\n")
    yaml = files.dataset_yaml(
        tmp_path,
        """\
name: own
images: images/**/*.jpg
labels: labels/**/*.png
match: {strip: [_img, _lab]}
label_format: ids
classes:
  - {name: road, ids: [4, 300], color: [128, 64, 128]}
  - {name: sky, ids: [9]}
ignore: [0, 5, 65535]
splits: {train: train.txt, val: val.txt}
""",
    )
    dataset = prepare_dataset(str(yaml), root=tmp_path / "data").dataset
    assert [sample.image for sample in dataset.splits["train"]] == [
        "images/d0/0_img.jpg",
        "images/d1/1_img.jpg",
    ]
    assert [sample.image for sample in dataset.splits["val"]] == ["images/d1/3_img.jpg"]
    np.testing.assert_array_equal(
        _labels(dataset)["images/d0/0_img.jpg"], [[0, 0, IGNORE], [1, IGNORE, IGNORE]]
    )
    assert dataset.splits["train"][0].class_pixels == (2, 1)
    assert dataset.classes.names == ("road", "sky")
    assert read_index(tmp_path / "data/prepared/own") == dataset


def _jpeg(height=2, width=3):
    return files.coded(Image.fromarray(files.noise(height, width)), "JPEG")


def test_colour_coded_labels_become_train_ids(tmp_path):
    pixels = np.array([[[1, 2, 3], [9, 9, 9]], [[255, 0, 0], [0, 0, 0]]], np.uint8)
    files.put(tmp_path / "i/x.png", files.image_png(2, 2))
    files.put(tmp_path / "l/x.png", files.coded(Image.fromarray(pixels), "PNG"))
    text = (
        "name: own\nimages: i/*.png\nlabels: l/*.png\nlabel_format: rgb\nignore: [[0, 0, 0]]\n"
        "classes:\n  - {name: a, color: [255, 0, 0]}\n"
        "  - {name: b, color: [1, 2, 3], colors: [[9, 9, 9]]}\n"
    )
    dataset = prepare_dataset(str(files.dataset_yaml(tmp_path, text)), root=tmp_path).dataset
    np.testing.assert_array_equal(_labels(dataset)["i/x.png"], [[1, 1], [0, IGNORE]])
    text = text.replace(", colors: [[9, 9, 9]]", "")
    with pytest.raises(DataError, match=r"\[9, 9, 9\]: 1 pixels"):
        prepare_dataset(str(files.dataset_yaml(tmp_path, text)), root=tmp_path)


def test_labels_may_exist_for_some_splits_only(tmp_path):
    for split, number in (("train", 0), ("train", 1), ("val", 2)):
        files.put(tmp_path / f"target/{split}/{number}.png", files.image_png(*SIZE))
    files.put(tmp_path / "target_labels/val/2.png", files.gray_png(_ids([0, 1])))
    for images in ("{train: target/train/*.png, val: target/val/*.png}", "target/**/*.png"):
        rule = "splits: {train: train, val: val}\n" if images.startswith("target") else ""
        text = f"name: own\nimages: {images}\nlabels: {{val: target_labels/val/*.png}}\n{rule}"
        yaml = files.dataset_yaml(tmp_path, f"{text}classes: [a, b]\n")
        report = prepare_dataset(str(yaml), root=tmp_path / "data")
        assert report.unlabelled == ("train",)
        assert [s.label for s in report.dataset.splits["train"]] == [None, None]
        assert report.dataset.splits["val"][0].label is not None


def test_fractions_share_out_every_image_by_its_name_alone(tmp_path):
    yaml = _own(tmp_path, pairs=10, split="splits: {train: 0.7, val: 0.3}\n")
    splits = prepare_dataset(str(yaml), root=tmp_path / "a").dataset.splits
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 7, "val": 3}
    names = {split: {s.image for s in samples} for split, samples in splits.items()}
    assert not names["train"] & names["val"]
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", moved / "images")
    shutil.copytree(tmp_path / "labels", moved / "labels")
    shutil.copy(yaml, moved)
    again = prepare_dataset(str(moved / "own.yaml"), root=tmp_path / "b").dataset.splits
    assert {split: {s.image for s in samples} for split, samples in again.items()} == names


def test_an_unlabelled_target_may_hold_one_name_with_two_suffixes(tmp_path):
    files.put(tmp_path / "i/x.png", files.image_png(*SIZE))
    files.put(tmp_path / "i/x.jpg", _jpeg())
    files.put(tmp_path / "i/notes.txt", b"no image")
    yaml = files.dataset_yaml(tmp_path, "name: own\nimages: i/**/*\n")
    report = prepare_dataset(str(yaml), root=tmp_path)
    assert [s.image for s in report.dataset.splits["train"]] == ["i/x.jpg", "i/x.png"]
    assert report.dataset.classes is None


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("splits: {train: day}\n", "splits.train: no image is in a folder 'day'"),
        (
            "splits: {train: lost.txt}\n",
            r"split list lost.txt cannot be read, beside the YAML or at .*/lost.txt: No such file",
        ),
        ("splits: {train: bad.txt}\n", "bad.txt: lists 17, which matches no image"),
        ("splits: {train: pairs.txt}\n", r"lists 0.png l/0.png \(write one name a line\), which"),
        ("splits: {train: empty.txt}\n", "empty.txt lists no image of the dataset"),
        ("splits: {train: 0.01}\n", "that fraction of 3 images is empty"),
    ],
)
def test_a_split_that_names_nothing_is_refused(tmp_path, split, said):
    files.put(tmp_path / "bad.txt", b"0\n17\n")
    files.put(tmp_path / "empty.txt", b"# none\n")
    files.put(tmp_path / "pairs.txt", b"0.png l/0.png\n")
    yaml = _own(tmp_path, split=split)
    with pytest.raises(DataError, match=said):
        prepare_dataset(str(yaml), root=tmp_path)


def test_a_glob_without_images_is_refused(tmp_path):
    yaml = _own(tmp_path)
    yaml.write_text(yaml.read_text().replace("images/**/*.png", "image/*.png"))
    assert "matches image/*.png" in _refused(yaml, tmp_path)
    text = "name: own\nimages: {train: images/*.png, val: val/*.png}\n"
    assert "images.val" in _refused(files.dataset_yaml(tmp_path, text), tmp_path)


def test_images_without_any_label_are_one_fault(tmp_path):
    yaml = _own(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    assert "no label matches labels/**/*.png" in _refused(yaml, tmp_path)


# faulty files


@pytest.mark.parametrize("number", [34, 254, 300, 65535])
def test_unknown_ids_are_counted_and_refused_unless_ignored(tmp_path, number):
    yaml = _own(tmp_path)
    ids = _ids([0, 1])
    ids[2, 3:6] = number
    path = files.put(tmp_path / "labels/1.png", files.gray_png(ids, 16))
    message = _refused(yaml, tmp_path)
    assert f"{number}: 3 pixels, first in {path}" in message
    yaml.write_text(yaml.read_text().replace("[255]", f"[255, {number}]"))
    dataset = prepare_dataset(str(yaml), root=tmp_path).dataset
    assert (_labels(dataset)["images/1.png"] == IGNORE).sum() == 3


@pytest.mark.parametrize("number", [-1, -(2**31), 2**31 - 1])
def test_the_advice_on_an_unknown_id_of_an_int32_label_can_be_followed(tmp_path, number):
    yaml = _own(tmp_path)
    ids = np.array(_ids([0, 1]), np.int32)
    ids[2, 3:6] = number
    (tmp_path / "labels/1.png").unlink()
    Image.fromarray(ids).save(tmp_path / "labels/1.tif")
    yaml.write_text(yaml.read_text().replace("labels/**/*.png", "labels/**/*"))
    assert f"{number}: 3 pixels, first in {tmp_path / 'labels/1.tif'}" in _refused(yaml, tmp_path)
    known = yaml.read_text()
    for line in (f"ignore: [255, {number}]", f"ignore: [{number}]"):
        yaml.write_text(known.replace("ignore: [255]", line))
        dataset = prepare_dataset(str(yaml), root=tmp_path).dataset
        assert np.array_equal(
            _labels(dataset)["images/1.png"], np.where(ids == number, IGNORE, ids)
        )
    yaml.write_text(known.replace("[a, b, c]", f"[a, b, {{name: c, ids: [2, {number}]}}]"))
    dataset = prepare_dataset(str(yaml), root=tmp_path).dataset
    assert np.array_equal(_labels(dataset)["images/1.png"], np.where(ids == number, 2, ids))


def test_every_file_that_cannot_be_used_is_named_and_counted(tmp_path):
    yaml = _own(tmp_path, pairs=9)
    whole = (tmp_path / "labels/0.png").read_bytes()
    files.put(tmp_path / "labels/0.png", whole[:-20])
    files.put(tmp_path / "images/1.png", b"")
    flipped = bytearray(whole)
    flipped[45] ^= 4
    files.put(tmp_path / "labels/2.png", bytes(flipped))
    (tmp_path / "labels/3.png").unlink()
    (tmp_path / "images/4.png").unlink()
    (tmp_path / "images/5.png").unlink()
    (tmp_path / "images/5.png").symlink_to("nowhere")
    files.put(tmp_path / "images/6.jpg", _jpeg(*SIZE))
    yaml.write_text(yaml.read_text().replace("images/**/*.png", "images/**/*"))
    message = _refused(yaml, tmp_path, max_bad=2)
    assert "3 files cannot be used" in message
    assert "3.png: has no label" in message
    assert "labels/4.png: label without an image" in message
    assert "6.png: has the same name as 6.jpg" in message
    files.put(tmp_path / "images/4.gif", b"GIF89a")
    message = _refused(yaml, tmp_path, max_bad=2)
    assert "4.png: label without an image (images/**/*; the format of 4.gif is not read)" in message
    message = _refused(yaml, tmp_path, max_bad=6)
    assert "7 files cannot be used" in message
    for reason in ("0.png: damaged: the PNG is cut off", "1.png: is empty", "2.png: damaged: the"):
        assert reason in message
    assert "5.png: is a broken link" in message
    assert "--max-bad 7" in message
    report = prepare_dataset(str(yaml), root=tmp_path, options=PrepareOptions(max_bad=7))
    assert len(report.bad) == 7
    assert [s.image for s in report.dataset.splits["train"]] == [
        "images/6.jpg",
        "images/7.png",
        "images/8.png",
    ]


def test_ten_faults_are_shown_and_the_rest_counted(tmp_path):
    yaml = _own(tmp_path, pairs=15)
    for number in range(14):
        (tmp_path / f"labels/{number}.png").unlink()
    lines = _refused(yaml, tmp_path).splitlines()
    assert lines[0] == "own: 14 files cannot be used:"
    assert lines[11] == "  and 4 more"
    assert len(lines) == 13


@pytest.mark.parametrize("size", [(5, 8), (6, 9), (8, 6), (18, 24)])
def test_a_label_of_another_size_is_left_out_resized_or_refused_by_rule(tmp_path, size):
    yaml = _own(tmp_path)
    ids = _ids([0, 1, 2], 5, size)
    files.put(tmp_path / "labels/1.png", files.gray_png(ids))
    what = f"labels/1.png: label {size[1]}x{size[0]}, image 8x6"
    assert what in _refused(yaml, tmp_path, on_mismatch="fail")
    report = prepare_dataset(str(yaml), root=tmp_path)
    assert len(report.dataset.splits["train"]) == 2
    assert len(report.excluded) == 1
    assert what in report.excluded[0]
    report = prepare_dataset(str(yaml), root=tmp_path, options=PrepareOptions(on_mismatch="resize"))
    assert not report.unchanged
    assert not report.excluded
    labels = _labels(report.dataset)["images/1.png"]
    rows = (np.arange(6) + 0.5) * size[0] / 6
    columns = (np.arange(8) + 0.5) * size[1] / 8
    clear = np.ix_(rows % 1 > 0, columns % 1 > 0)  # halfway between two pixels, either is nearest
    nearest = ids[np.ix_(rows.astype(int), columns.astype(int))]
    np.testing.assert_array_equal(labels[clear], nearest[clear])


def test_blank_images_and_labels_without_a_class_are_kept_and_counted(tmp_path):
    yaml = _own(tmp_path)
    black = files.coded(Image.new("RGB", SIZE[::-1]), "PNG")
    files.put(tmp_path / "images/1.png", black)
    files.put(tmp_path / "labels/2.png", files.gray_png(np.full(SIZE, 255)))
    report = prepare_dataset(str(yaml), root=tmp_path)
    assert [Path(path).name for path in report.blank] == ["1.png"]
    assert [s.class_pixels for s in report.dataset.splits["train"]][2] == (0, 0, 0)
    # flagged in the index, even when nothing is read again
    assert prepare_dataset(str(yaml), root=tmp_path).unchanged
    assert read_index(tmp_path / "prepared/own").blank_images == {"images/1.png"}


_NAMES = ["a b", "ünï", "-x", "[x]", "new\nline", "esc\x1b[31m", "x" * 240, "dir[1]/[/]", "a.b.c"]


@pytest.mark.parametrize("name", _NAMES, ids=map(repr, range(len(_NAMES))))
def test_any_file_name_comes_through(tmp_path, name):
    for kind, data in (("images", files.image_png(*SIZE)), ("labels", files.gray_png(_ids([0])))):
        files.put(tmp_path / kind / f"{name}.png", data)
    yaml = _own(tmp_path, pairs=1)
    prepare_dataset(str(yaml), root=tmp_path)
    dataset = read_index(tmp_path / "prepared/own")
    assert f"images/{name}.png" in _labels(dataset)


def test_a_name_that_is_not_utf8_comes_through(tmp_path):
    yaml = _own(tmp_path, pairs=1)
    for kind in ("images", "labels"):
        raw = os.fsencode(tmp_path / kind)
        try:
            Path(os.fsdecode(raw + b"/0.png")).rename(os.fsdecode(raw + b"/caf\xe9.png"))
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    prepare_dataset(str(yaml), root=tmp_path)
    (labels,) = _labels(read_index(tmp_path / "prepared/own")).values()
    assert labels.shape == SIZE


# repeated and concurrent runs, and no writes to the source


def test_what_has_not_changed_is_not_done_again(tmp_path):
    yaml = _own(tmp_path)
    files.put(tmp_path / "labels/1.png", files.gray_png(_ids([0], size=(3, 3))))
    first = prepare_dataset(str(yaml), root=tmp_path / "data")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.*")}
    again = prepare_dataset(str(yaml), root=tmp_path / "data")
    assert (first.unchanged, again.unchanged) == (False, True)
    assert again.dataset == first.dataset
    assert again.excluded == first.excluded != []
    assert {p: p.stat().st_mtime_ns for p in times} == times


@pytest.mark.parametrize(
    "change", ["image", "label", "new", "gone", "classes", "prepared", "index"]
)
def test_what_has_changed_is_noticed(tmp_path, change):
    yaml = _own(tmp_path)
    prepare_dataset(str(yaml), root=tmp_path)
    done = tmp_path / "prepared/own"
    if change == "image":
        files.put(tmp_path / "images/0.png", files.image_png(*SIZE, 99))
    elif change == "label":
        files.put(tmp_path / "labels/0.png", files.gray_png(_ids([2])))
    elif change == "new":
        files.put(tmp_path / "images/n.png", files.image_png(*SIZE))
        files.put(tmp_path / "labels/n.png", files.gray_png(_ids([2])))
    elif change == "gone":
        (tmp_path / "images/0.png").unlink()
        (tmp_path / "labels/0.png").unlink()
    elif change == "classes":
        yaml.write_text(yaml.read_text().replace("[a, b, c]", "[a, b, d]"))
    elif change == "prepared":
        (done / "labels/train/1.png").unlink()
    else:
        (done / "index.json").unlink()
    report = prepare_dataset(str(yaml), root=tmp_path)
    assert not report.unchanged
    fresh = prepare_dataset(str(yaml), root=tmp_path / "fresh")
    assert report.dataset.splits == fresh.dataset.splits
    assert _tree(done).keys() == _tree(tmp_path / "fresh/prepared/own").keys()
    assert prepare_dataset(str(yaml), root=tmp_path).unchanged


def test_the_source_is_never_written(tmp_path):
    source = tmp_path / "mine"
    yaml = _own(source)
    before = _tree(source)
    times = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    prepare_dataset(str(yaml), root=tmp_path / "data")
    assert _tree(source) == before
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == times


def test_a_look_writes_nothing(tmp_path):
    yaml = _own(tmp_path / "mine")
    report = prepare_dataset(
        str(yaml), root=tmp_path / "data", options=PrepareOptions(check_only=True)
    )
    assert not (tmp_path / "data").exists()
    assert [s.class_pixels for s in report.dataset.splits["train"]] == [
        s.class_pixels
        for s in prepare_dataset(str(yaml), root=tmp_path / "data").dataset.splits["train"]
    ]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_threads_changes_nothing(tmp_path, workers):
    yaml = _own(tmp_path, pairs=12)
    done = []
    report = prepare_dataset(
        str(yaml),
        root=tmp_path,
        options=PrepareOptions(workers=workers),
        on_progress=lambda *at: done.append(at),
    )
    assert done == [(number, 12) for number in range(13)]
    assert [s.image for s in report.dataset.splits["train"]] == sorted(
        f"images/{number}.png" for number in range(12)
    )


# missing data


@pytest.mark.parametrize("name", ["gta5", "synthia", "cityscapes", "camvid", "acdc"])
def test_missing_data_are_asked_for_in_one_screen(tmp_path, name):
    message = _missing(name, tmp_path)
    for part in ("page     http", "licence  ", "files    ", f"udaseg prepare {name}", "what     "):
        assert part in message, message
    assert str(tmp_path / name) in message
    assert len(message.splitlines()) < 20
    assert message == printable(message)


def _missing(name, root):
    with pytest.raises(DataError) as caught:
        prepare_dataset(name, root=root)
    assert not any(root.iterdir())
    return str(caught.value)


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(DataError, match="did you mean 'cityscapes'"):
        prepare_dataset("cityscape", root=tmp_path)


def test_a_root_that_is_not_there_is_named(tmp_path):
    yaml = files.dataset_yaml(tmp_path, "name: own\nimages: '*.png'\nroot: lost\n")
    assert "lost is not a folder" in _refused(yaml, tmp_path)


def test_cityscapes_without_its_labels_says_where_they_are_from(tmp_path):
    files.put(
        tmp_path / "cityscapes/leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        files.image_png(),
    )
    with pytest.raises(DataError, match=r"no label matches gtFine(.|\n)*gtFine_trainvaltest.zip"):
        prepare_dataset("cityscapes", root=tmp_path)


def test_what_was_prepared_with_a_rule_is_opened_with_it(tmp_path):
    yaml = _own(tmp_path)
    files.put(tmp_path / "labels/1.png", files.gray_png(_ids([0], size=(12, 16))))
    (tmp_path / "labels/2.png").unlink()
    prepare_dataset(str(yaml), root=tmp_path, options=PrepareOptions(1, "resize"))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("*.*")}
    assert len(open_dataset(str(yaml), root=tmp_path).splits["train"]) == 2
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_more_classes_than_labels_can_hold_are_counted(tmp_path):
    yaml = _own(tmp_path)
    names = ", ".join(f"c{number}" for number in range(255))
    yaml.write_text(f"name: own\nimages: i/*\nlabels: l/*\nclasses: [{names}]\n")
    with pytest.raises(DataError, match=r"list of 1 to 254 classes, .*got a list of 255"):
        prepare_dataset(str(yaml), root=tmp_path)
