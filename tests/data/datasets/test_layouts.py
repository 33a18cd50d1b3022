"""Other releases and rearranged folders of the built-in sets are detected automatically."""

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from tests.support.hostile import zip_of
from udaseg.data.datasets.catalog import read_builtin
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.datasets.layouts import match_layout
from udaseg.data.doctor.doctor import doctor
from udaseg.data.labels.read import read_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError

SIZE = (6, 11)
JPEG = files.coded(Image.fromarray(files.noise(*SIZE)), "JPEG")


def _ids(seed, values):
    return np.random.default_rng(seed).choice(values, SIZE)


def _first(dataset, split="train"):
    return read_train_ids(dataset.label_path(dataset.split(split)[0]))


def _acdc(root, image, label):
    ids = {}
    for number, split in enumerate(("train", "val")):
        ids[split] = _ids(number, [0, 18, 255])
        files.put(root / image.format(split), files.image_png(*SIZE, number))
        files.put(root / label.format(split), files.gray_png(ids[split]))
    return ids


FLAT = (
    "acdc/rgb_anon/{}/GOPR0475_frame_000041_rgb_anon.png",
    "acdc/gt/{}/GOPR0475_frame_000041_gt_labelTrainIds.png",
)
NESTED = tuple(path.replace("{}", "fog/{}/GOPR0475") for path in FLAT)


def test_acdc_is_read_as_it_is_published_and_as_others_rearrange_it(tmp_path):
    for name, paths in (("nested", [NESTED]), ("flat", [FLAT]), ("both", [FLAT, NESTED])):
        ids = [_acdc(tmp_path / name, *pair) for pair in paths][-1]
        dataset = prepare_dataset("acdc", root=tmp_path / name).dataset
        assert {split: len(samples) for split, samples in dataset.splits.items()} == {
            "train": 1,
            "val": 1,
        }
        for split in ("train", "val"):
            np.testing.assert_array_equal(_first(dataset, split), ids[split])


@pytest.mark.parametrize("place", ["bdd100k", "bdd100k_seg/bdd100k", "archive"])
def test_bdd_of_2018_is_read_too(tmp_path, place):
    ids = _ids(3, [0, 9, 255])
    members_by_name = {}
    for split in ("train", "val"):
        members_by_name[f"seg/images/{split}/0004a4c0-d4dff0ad.jpg"] = JPEG
        members_by_name[f"seg/labels/{split}/0004a4c0-d4dff0ad_train_id.png"] = files.gray_png(ids)
        colors = f"seg/color_labels/{split}/0004a4c0-d4dff0ad_train_color.png"
        members_by_name[colors] = files.image_png(*SIZE)
    if place == "archive":
        members = [(f"bdd100k_seg/bdd100k/{name}", data) for name, data in members_by_name.items()]
        zip_of(tmp_path / "bdd100k_seg.zip", members)
    else:
        for name, data in members_by_name.items():
            files.put(tmp_path / place / name, data)
    dataset = prepare_dataset("bdd100k", root=tmp_path).dataset
    assert set(dataset.splits) == {"train", "val"}
    np.testing.assert_array_equal(_first(dataset), ids)
    assert prepare_dataset("bdd100k", root=tmp_path).unchanged


@pytest.mark.parametrize("archive", [False, True])
def test_mapillary_v2_is_read_by_its_labels_of_v1_2(tmp_path, archive):
    ids = _ids(4, [13, 65, 27])
    members_by_name = {}
    for split in ("training", "validation"):
        members_by_name[f"{split}/images/x_1.jpg"] = JPEG
        members_by_name[f"{split}/v1.2/labels/x_1.png"] = files.palette_png(ids)
        members_by_name[f"{split}/v2.0/labels/x_1.png"] = files.palette_png(ids + 50)
    if archive:
        zip_of(tmp_path / "mapillary-vistas-dataset_public_v2.0.zip", list(members_by_name.items()))
    else:
        for name, data in members_by_name.items():
            files.put(tmp_path / "mapillary" / name, data)
    dataset = prepare_dataset("mapillary", root=tmp_path).dataset
    expected = np.select([ids == 13, ids == 27], [0, 10], 255)
    np.testing.assert_array_equal(_first(dataset), expected)


@pytest.mark.parametrize(
    ("name", "image", "label", "encode"),
    [
        ("gta5", "gta5/images/00001.png", "gta5/labels/00001.png", files.palette_png),
        ("synthia", "synthia/RGB/0000001.png", "synthia/GT/LABELS/0000001.png", files.synthia_png),
    ],
)
def test_what_converters_put_beside_the_labels_is_no_label(tmp_path, name, image, label, encode):
    files.put(tmp_path / image, files.image_png(*SIZE))
    path = files.put(tmp_path / label, encode(_ids(5, [7, 8])))
    converted = path.with_name(f"{path.stem}_labelTrainIds.png")
    files.put(converted, files.gray_png(np.zeros(SIZE, int)))
    report = prepare_dataset(name, root=tmp_path)
    assert report.bad == []
    assert len(report.dataset.split("train")) == 1
    codes = {finding.code for finding in doctor(name, root=tmp_path).findings}
    assert codes.isdisjoint({"label-without-image", "unused-file"})


def test_doctor_looks_where_prepare_looks(tmp_path):
    _acdc(tmp_path, *FLAT)
    report = doctor("acdc", root=tmp_path)
    assert {name: split.labelled for name, split in report.sets[0].splits.items()} == {
        "train": 1,
        "val": 1,
    }
    assert not report.with_severity("error")


def test_a_layout_whose_labels_are_not_there_is_told_by_its_own_globs(tmp_path):
    files.put(tmp_path / "acdc/rgb_anon/train/a_rgb_anon.png", files.image_png(*SIZE))
    with pytest.raises(DataError, match=r"no label matches gt/train/\*_gt_labelTrainIds"):
        prepare_dataset("acdc", root=tmp_path)


def test_without_any_file_the_published_layout_is_asked_for(tmp_path):
    assert match_layout(read_builtin("acdc"), tmp_path) == read_builtin("acdc")
    with pytest.raises(DataError, match=r"rgb_anon/\*/train/"):
        prepare_dataset("acdc", root=tmp_path)


def test_a_set_that_says_where_its_files_are_has_no_other_layout(tmp_path):
    text = "name: foggy\nbase: acdc\nimages: {train: rgb_anon/fog/train/**/*.png}\n"
    declaration = read_declaration(files.dataset_yaml(tmp_path, text))
    assert declaration.layouts == ()
    text = "name: clear\nbase: acdc\nexclude: []\n"
    assert (
        read_declaration(files.dataset_yaml(tmp_path, text)).layouts == read_builtin("acdc").layouts
    )


@pytest.mark.parametrize("entry", ["rgb", "[1]", "[{}]", "[{pictures: a}]", "[{images: /a}]"])
def test_a_fault_in_a_layout_is_named(tmp_path, entry):
    text = f"name: own\nimages: images/*.png\nlayouts: {entry}\n"
    with pytest.raises(DataError, match=r"own\.yaml:3:\d+: layouts\S*: (must|unknown)"):
        read_declaration(files.dataset_yaml(tmp_path, text))
