"""The built-in sets in their published layouts: splits, label meanings, archives."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.datasets.catalog import builtin_names, read_builtin
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = (6, 11)
# published values: websites of the sets, papers, public code
PUBLISHED = {
    "acdc": {"train": 1600, "val": 406},
    "bdd100k": {"train": 7000, "val": 1000},
    "camvid": {"train": 367, "val": 101, "test": 233},
    "camvid-original": {"train": 367, "val": 101, "test": 233},
    "cityscapes": {"train": 2975, "val": 500},
    "dark-zurich": {"train": 2416, "train-twilight": 2920, "train-day": 3041, "val": 50},
    "gta5": {"train": 24966},
    "kitti-semantics": {"train": 200, "test": 200},
    "loveda": {"train": 2522, "val": 1669, "test": 1796},
    "loveda-rural": {"train": 1366, "val": 992, "test": 976},
    "loveda-urban": {"train": 1156, "val": 677, "test": 820},
    "mapillary": {"train": 18000, "val": 2000},
    "synscapes": {"train": 25000},
    "synthia": {"train": 9400},
    "synthia19": {"train": 9400},
}


def _pair(root, image, label, ids=None, encode=files.gray_png):
    """Write an image in the format of its file extension, and its label."""
    picture = Image.fromarray(files.noise(*SIZE))
    kind = "JPEG" if image.endswith("jpg") else "PNG"
    files.put(root / image, files.coded(picture, kind))
    if label is not None:
        files.put(root / label, encode(ids))


def _labels(dataset, split="train"):
    return [read_train_ids(dataset.label_path(sample)) for sample in dataset.split(split)]


def _meant(ids, table):
    """Convert raw ids to train ids with a naive loop over a table."""
    out = np.full(ids.shape, IGNORE)
    for train_id, raw_ids in enumerate(builtin_label_table(table).ids):
        for number in raw_ids:
            out[ids == number] = train_id
    return out


def test_counts_are_the_published_ones():
    published = {name for name in builtin_names() if not name.startswith("toyland")}
    assert {name: read_builtin(name).expected_counts for name in published} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_set_says_where_it_comes_from_and_where_to_put_it(tmp_path, name):
    with pytest.raises(DataError) as caught:
        prepare_dataset(name, root=tmp_path)
    message, about = str(caught.value), read_builtin(name)
    assert f"page     {about.about['home']}" in message
    assert f"licence  {about.about['licence']}" in message
    for archive in about.about["download"]:
        assert archive in message
    for glob in about.images.values():
        assert glob in message
    assert f"udaseg prepare {name}" in message


# layouts not covered by other tests


def test_dark_zurich_is_unlabelled_but_for_its_validation_night(tmp_path):
    for split, folder in (("night", "train"), ("twilight", "train"), ("day", "train")):
        for number in (41, 42):
            name = f"{folder}/{split}/GOPR0351/GOPR0351_frame_0000{number}"
            _pair(tmp_path, f"dark_zurich/rgb_anon/{name}_rgb_anon.png", None)
    ids = np.random.default_rng(0).choice([0, 10, 18, 255], SIZE)
    name = "val/night/GOPR0356/GOPR0356_frame_000321"
    _pair(
        *(tmp_path, f"dark_zurich/rgb_anon/{name}_rgb_anon.png"),
        *(f"dark_zurich/gt/{name}_gt_labelTrainIds.png", ids),
    )
    for form in ("labelIds", "labelColor", "invGray"):
        files.put(tmp_path / f"dark_zurich/gt/{name}_gt_{form}.png", files.gray_png(ids * 0))
    reference = name.replace("val/night", "val_ref/day")
    _pair(tmp_path, f"dark_zurich/rgb_anon/{reference}_rgb_anon.png", None)
    report = prepare_dataset("dark-zurich", root=tmp_path)
    assert {split: len(samples) for split, samples in report.dataset.splits.items()} == {
        "train": 2,
        "train-twilight": 2,
        "train-day": 2,
        "val": 1,
    }
    assert report.unlabelled == ("train", "train-twilight", "train-day")
    assert all("/night/" in sample.image for sample in report.dataset.split("train"))
    np.testing.assert_array_equal(_labels(report.dataset, "val")[0], ids)
    assert report.dataset.classes == builtin_label_table("cityscapes19").classes


@pytest.mark.parametrize("folder", ["bdd100k", "BDD100K", "bdd100k/bdd100k"])
def test_bdd_s_labels_are_train_ids(tmp_path, folder):
    ids = np.random.default_rng(1).choice([0, 9, 16, 18, 255], SIZE)
    for split in ("train", "val"):
        for name in ("0004a4c0-d4dff0ad", "00054602-3bf57337"):
            image = f"{folder}/images/10k/{split}/{split}-{name}.jpg"
            _pair(tmp_path, image, f"{folder}/labels/sem_seg/masks/{split}/{split}-{name}.png", ids)
            colors = f"{folder}/labels/sem_seg/colormaps/{split}/{split}-{name}.png"
            files.put(tmp_path / colors, files.image_png(*SIZE))
    _pair(tmp_path, f"{folder}/images/10k/test/x.jpg", None)
    dataset = prepare_dataset("bdd100k", root=tmp_path).dataset
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 2,
        "val": 2,
    }
    np.testing.assert_array_equal(_labels(dataset)[0], ids)


def test_mapillary_s_sixty_six_palette_ids_become_nineteen_classes(tmp_path):
    ids = np.arange(66).reshape(SIZE)
    for split in ("training", "validation"):
        _pair(
            *(tmp_path, f"mapillary/{split}/images/_0ivjZt7MCvTVvrQaTVdPw.jpg"),
            *(f"mapillary/{split}/labels/_0ivjZt7MCvTVvrQaTVdPw.png", ids, files.palette_png),
        )
        instances = f"mapillary/{split}/instances/_0ivjZt7MCvTVvrQaTVdPw.png"
        files.put(tmp_path / instances, files.gray_png(ids * 256, 16))
    _pair(tmp_path, "mapillary/testing/images/x.jpg", None)
    dataset = prepare_dataset("mapillary", root=tmp_path).dataset
    published = {
        13: 0,
        24: 0,
        41: 0,
        2: 1,
        15: 1,
        17: 2,
        6: 3,
        3: 4,
        45: 5,
        47: 5,
        48: 6,
        50: 7,
        30: 8,
        29: 9,
        27: 10,
        19: 11,
        20: 12,
        21: 12,
        22: 12,
        55: 13,
        61: 14,
        54: 15,
        58: 16,
        57: 17,
        52: 18,
    }
    expected = np.vectorize(lambda number: published.get(number, IGNORE))(ids)
    np.testing.assert_array_equal(_labels(dataset)[0], expected)
    np.testing.assert_array_equal(expected, _meant(ids, "mapillary19"))
    assert list(dataset.splits) == ["train", "val"]


def test_an_id_that_mapillary_v2_added_is_refused(tmp_path):
    ids = np.full(SIZE, 116)
    _pair(tmp_path, "mapillary/training/images/a.jpg", "mapillary/training/labels/a.png", ids)
    with pytest.raises(DataError, match="116: 66 pixels"):
        prepare_dataset("mapillary", root=tmp_path)


def test_kitti_has_cityscapes_ids_and_a_test_split_without_labels(tmp_path):
    ids = np.arange(66).reshape(SIZE) % 34
    for number in range(2):
        name = f"{number:06d}_10.png"
        image = f"kitti/training/image_2/{name}"
        _pair(tmp_path, image, f"kitti/training/semantic/{name}", ids)
        _pair(tmp_path, f"kitti/testing/image_2/{name}", None)
        for other in ("instance", "semantic_rgb"):
            files.put(tmp_path / f"kitti/training/{other}/{name}", files.image_png(*SIZE))
    report = prepare_dataset("kitti-semantics", root=tmp_path)
    assert report.unlabelled == ("test",)
    np.testing.assert_array_equal(_labels(report.dataset)[1], _meant(ids, "cityscapes19"))


def test_synthia_is_read_for_sixteen_outputs_and_for_nineteen_from_one_folder(tmp_path):
    ids = np.arange(66).reshape(SIZE) % 23
    _pair(
        tmp_path, "synthia/RGB/0000000.png", "synthia/GT/LABELS/0000000.png", ids, files.synthia_png
    )
    datasets = {
        name: prepare_dataset(name, root=tmp_path).dataset for name in ("synthia", "synthia19")
    }
    assert datasets["synthia19"].classes == builtin_label_table("cityscapes19").classes
    sixteen, nineteen = (_labels(dataset)[0] for dataset in datasets.values())
    np.testing.assert_array_equal(nineteen, _meant(ids, "synthia19"))
    names = datasets["synthia"].classes.train_ids_in(datasets["synthia19"].classes)
    widened = np.array([*names, *[IGNORE] * (256 - 16)])[sixteen]
    np.testing.assert_array_equal(widened, np.where(np.isin(ids, [16, 18, 20]), IGNORE, nineteen))


def test_synscapes_has_cityscapes_ids_beside_its_other_folders(tmp_path):
    ids = np.arange(66).reshape(SIZE) % 35
    for number in (1, 2, 25000):
        _pair(tmp_path, f"synscapes/img/rgb/{number}.png", f"synscapes/img/class/{number}.png", ids)
        for other in ("rgb-2k", "instance"):
            files.put(tmp_path / f"synscapes/img/{other}/{number}.png", files.image_png(12, 22))
    dataset = prepare_dataset("synscapes", root=tmp_path).dataset
    names = [dataset.image_path(sample).name for sample in dataset.split("train")]
    assert sorted(names) == ["1.png", "2.png", "25000.png"]
    np.testing.assert_array_equal(_labels(dataset)[2], _meant(ids, "cityscapes19"))


def test_synscapes_at_two_thousand_pixels_is_a_data_set_of_ones_own(tmp_path):
    ids = np.full(SIZE, 7)
    files.put(tmp_path / "synscapes/img/rgb-2k/1.png", files.image_png(12, 22))
    files.put(tmp_path / "synscapes/img/class/1.png", files.gray_png(ids))
    text = "name: synscapes-2k\nbase: synscapes\nimages: img/rgb-2k/*.png\n"
    yaml = files.dataset_yaml(tmp_path, text)
    options = PrepareOptions(on_mismatch="resize")
    dataset = prepare_dataset(str(yaml), root=tmp_path, options=options).dataset
    assert dataset.split("train")[0].class_pixels[0] == 12 * 22


# a target works without training labels, whether they were published or not


def test_a_labelled_set_serves_as_a_target_without_its_training_labels(tmp_path):
    name = "train/ulm/ulm_000000_000019"
    _pair(tmp_path, f"cityscapes/leftImg8bit/{name}_leftImg8bit.png", None)
    other = "val/lindau/lindau_000000_000019"
    ids = np.full(SIZE, 7)
    _pair(
        *(tmp_path, f"cityscapes/leftImg8bit/{other}_leftImg8bit.png"),
        *(f"cityscapes/gtFine/{other}_gtFine_labelIds.png", ids),
    )
    text = "name: target\nbase: cityscapes\nlabels: {val: gtFine/val/**/*_gtFine_labelIds.png}\n"
    yaml = files.dataset_yaml(tmp_path, text)
    dataset = open_dataset(str(yaml), root=tmp_path)
    assert [sample.label for sample in dataset.split("train")] == [None]
    assert dataset.split("val")[0].class_pixels[0] == ids.size


# archives


def _zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_two_archives_of_one_set_are_unpacked_into_one_folder(tmp_path):
    image, label = files.image_png(*SIZE), files.gray_png(np.zeros(SIZE, int))
    frame = "night/GOPR0356/GOPR0356_frame_000321"
    _zip(tmp_path / "Dark_Zurich_train_anon.zip", {f"rgb_anon/train/{frame}_rgb_anon.png": image})
    _zip(
        tmp_path / "Dark_Zurich_val_anon.zip",
        {
            f"rgb_anon/val/{frame}_rgb_anon.png": image,
            f"gt/val/{frame}_gt_labelTrainIds.png": label,
        },
    )
    jpeg = files.coded(Image.fromarray(files.noise(*SIZE)), "JPEG")
    _zip(tmp_path / "bdd100k_images_10k.zip", {"bdd100k/images/10k/train/a.jpg": jpeg})
    _zip(
        tmp_path / "bdd100k_sem_seg_labels_trainval.zip",
        {"bdd100k/labels/sem_seg/masks/train/a.png": label},
    )
    _zip(tmp_path / "701_StillsRaw_full.zip", {"701_StillsRaw_full/0006R0_f00930.png": image})
    black = files.coded(Image.new("RGB", SIZE[::-1]), "PNG")
    _zip(tmp_path / "LabeledApproved_full.zip", {"0006R0_f00930_L.png": black})
    for name, split in (("dark-zurich", "val"), ("bdd100k", "train")):
        dataset = prepare_dataset(name, root=tmp_path).dataset
        assert dataset.split(split)[0].class_pixels[0] == 66
    with pytest.raises(DataError, match=r"splits\.val"):
        prepare_dataset("camvid-original", root=tmp_path)


# the YAMLs in the repository


def test_the_yamls_of_the_repository_are_read(monkeypatch):
    monkeypatch.setenv("UDASEG_SYNSTREET2CAMVID", "/somewhere")
    monkeypatch.setenv("UDASEG_ISPRS", "/elsewhere")
    folder = REPOSITORY / "recipes" / "datasets"
    names = [read_declaration(path).name for path in sorted(folder.glob("*.yaml"))]
    assert {"camvid-drive", "synstreet", "potsdam", "vaihingen"} <= set(names)


def test_the_yamls_of_the_manual_are_read(tmp_path):
    page = (REPOSITORY / "docs" / "datasets.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    names = [read_declaration(files.dataset_yaml(tmp_path, block)).name for block in blocks]
    assert names == ["my_city", "my_city", "six"]
    for name in builtin_names():
        assert f"`{name}`" in page
