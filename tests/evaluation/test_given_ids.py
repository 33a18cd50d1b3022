"""What the ids in a folder of pseudo-labels mean."""

import json

import cv2
import numpy as np
import pytest

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError
from udaseg.evaluation.given_labels import find_given_labels


def space(*names):
    return ClassSpace(names, ((0, 0, 0),) * len(names))


NETWORK = space("road", "sky", "car")


@pytest.fixture
def folder(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 1, 2, 255]], np.uint8))
    return tmp_path


def read(folder, ids="train", classes=None, orientation=1, size=(1, 4)):
    sample = Sample("x/a.jpg", None, *size, orientation=orientation)
    split = {"train": (sample, Sample("x/b.jpg", None, 2, 2))}
    target = PreparedDataset("t", folder / "t", folder / "i", classes, split)
    given = find_given_labels(folder, ids, target, "train", NETWORK)
    assert (given.read(split["train"][1]) == 255).all()
    return given.read(sample).ravel().tolist()


def test_positions_in_the_classes_of_the_network(folder):
    assert read(folder) == [0, 1, 2, 255]


def test_positions_in_the_classes_of_the_target_by_name(folder):
    assert read(folder, classes=space("car", "tree", "road")) == [2, 255, 0, 255]


def test_positions_in_the_classes_that_were_written_beside_them(folder):
    facts = {"classes": {"names": ["sky", "car", "road"]}}
    (folder / "prediction.json").write_text(json.dumps(facts))
    assert read(folder, classes=space("car", "tree", "road")) == [1, 2, 0, 255]


def test_label_ids_of_cityscapes(folder):
    cv2.imwrite(str(folder / "a.png"), np.array([[7, 26, 23, 8, 0, 200, 255]], np.uint8))
    with pytest.raises(DataError, match="holds 200, which are no label ids"):
        read(folder, "label", size=(1, 7))
    cv2.imwrite(str(folder / "a.png"), np.array([[7, 26, 23, 8, 0, 255]], np.uint8))
    assert read(folder, "label", size=(1, 6)) == [0, 2, 1, 255, 255, 255]


def test_a_turned_image_has_labels_as_its_file_is_stored(folder):
    cv2.imwrite(str(folder / "a.png"), np.array([[0, 1], [2, 255], [1, 1]], np.uint8))
    # turned by a quarter to the right: the left column, from below, is the first row
    assert read(folder, orientation=6, size=(2, 3)) == [1, 2, 0, 1, 255, 1]


@pytest.mark.parametrize("beside", [True, False])
def test_predict_says_which_ids_the_folder_of_each_kind_holds(folder, beside):
    label_ids = folder / "label-ids"
    (folder / "ids").mkdir()
    (folder / "a.png").rename(folder / "ids/a.png")
    label_ids.mkdir()
    cv2.imwrite(str(label_ids / "a.png"), np.array([[7, 26, 23, 8]], np.uint8))
    ids = {"label-ids": "label"} if beside else {"ids": "train", "label-ids": "label"}
    facts = {"ids": ids, "classes": {"names": ["road", "sky", "car"]}}
    (folder / "prediction.json").write_text(json.dumps(facts))
    assert read(folder / "ids") == [0, 1, 2, 255]  # an older file does not say what `ids` holds
    assert read(label_ids, "label") == [0, 2, 1, 255]
    with pytest.raises(DataError, match="hold label ids, so they are not read as train ids"):
        read(label_ids)


def test_two_files_of_an_image_are_refused(folder):
    (folder / "x").mkdir()
    cv2.imwrite(str(folder / "x" / "a.png"), np.zeros((1, 4), np.uint8))
    with pytest.raises(DataError, match="several predictions for 1 of 2 images"):
        read(folder)


@pytest.mark.parametrize(("recorded", "ids"), [("train", "label"), ("label", "train")])
def test_ids_that_the_folder_says_are_others_are_refused(folder, recorded, ids):
    facts = {"ids": recorded, "classes": {"names": ["road", "sky", "car"]}}
    (folder / "prediction.json").write_text(json.dumps(facts))
    assert read(folder, recorded) == ([0, 1, 2, 255] if recorded == "train" else [255] * 4)
    with pytest.raises(DataError, match=f"hold {recorded} ids, so they are not read as {ids} ids"):
        read(folder, ids)
