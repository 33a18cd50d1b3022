"""Class lists in YAML: merges by id, colour and name, custom lists, sets based on another set,
and messages when source and target differ.
"""

import re

import numpy as np
import pytest

from tests.support import files
from udaseg.data.datasets.catalog import read_builtin
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.open import open_dataset
from udaseg.data.prepare.convert import to_train_ids
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError
from udaseg.training.plan import _class_rows

SIX = """\
name: six
base: cityscapes
classes:
  - {name: flat, of: [road, sidewalk], color: [9, 9, 9]}
  - {name: building, of: [building, wall, fence]}
  - {name: object, of: [pole, traffic light, traffic sign], ids: [18]}
  - {name: nature, of: [vegetation, terrain, sky]}
  - {name: human, of: [person, rider]}
  - {name: vehicle, of: [car, truck, bus, train, motorcycle, bicycle], ids: [29, 30]}
"""


def _table(folder, text):
    table = read_declaration(files.dataset_yaml(folder, text)).table
    assert table is not None
    return table


def _faults(folder, text):
    with pytest.raises(DataError) as caught:
        read_declaration(files.dataset_yaml(folder, text))
    lines = [line.split("own.yaml:")[1] for line in str(caught.value).splitlines()]
    return [re.sub("^([0-9]+):[0-9]+:", r"\1:", line) for line in lines]


def _plain(top, *entries):
    listed = "".join(f"  - {entry}\n" for entry in entries)
    return f"name: x\nimages: i/*.png\nlabels: l/*.png\n{top}classes:\n{listed}"


# merges


def test_classes_of_a_table_become_one_by_name(tmp_path):
    table = _table(tmp_path, SIX)
    official = builtin_label_table("cityscapes19")
    meant = {
        **dict.fromkeys(("road", "sidewalk"), 0),
        **dict.fromkeys(("building", "wall", "fence"), 1),
        **dict.fromkeys(("pole", "traffic light", "traffic sign"), 2),
        **dict.fromkeys(("vegetation", "terrain", "sky"), 3),
        **dict.fromkeys(("person", "rider"), 4),
        **dict.fromkeys(("car", "truck", "bus", "train", "motorcycle", "bicycle"), 5),
    }
    expected = np.full(256, -1)
    for number in official.ignore:
        expected[number] = IGNORE
    for name, ids in zip(official.classes.names, official.ids, strict=True):
        expected[list(ids)] = meant[name]
    expected[[18, 29, 30]] = 2, 5, 5  # ids without a class in the table can be merged by id
    labels, unknown = to_train_ids(np.arange(256, dtype=np.uint8)[None], table)
    np.testing.assert_array_equal(labels[0], np.where(expected < 0, IGNORE, expected))
    assert set(unknown) == set(np.flatnonzero(expected < 0).tolist())


def test_a_merged_class_has_its_own_colour_or_that_of_its_first_part(tmp_path):
    classes = _table(tmp_path, SIX).classes
    assert classes.names == ("flat", "building", "object", "nature", "human", "vehicle")
    assert classes.colors[0] == (9, 9, 9)
    assert classes.colors[4] == (220, 20, 60)


def test_a_class_of_the_table_is_dropped_only_by_its_name(tmp_path):
    text = _plain("table: toyland13\n", "road", "{name: rest, of: [sidewalk, building]}")
    (fault,) = _faults(tmp_path, text)
    assert fault.startswith("5: classes: fence, pole, traffic light, traffic sign, vegetation, sky")
    assert "of toyland13 are in no class; add them to a class or to 'ignore'" in fault
    others = "fence, pole, traffic light, traffic sign, vegetation, sky, person, car, bus, bicycle"
    table = _table(tmp_path, text + f"ignore: [{others}, 99]\n")
    assert table.ids == ((0,), (1, 2))
    assert table.ignore == {*range(3, 13), 99, 255}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "{name: a, of: [raod]}",
            "7: classes[1]: the table has no class 'raod'; did you mean",
        ),
        ("raod", "7: classes[1]: the table has no class 'raod'; did you mean 'road'?"),
        ("{name: a, of: road}", "7: classes[1].of: must be a list of class names of"),
        ("{name: a, of: [road]}", "7: classes[1]: id 0 belongs to both road and a"),
        ("{name: a, off: [road]}", "7: classes[1].off: unknown key; did you mean 'of'?"),
    ],
)
def test_a_fault_in_a_merge_is_named_with_its_line(tmp_path, entry, said):
    faults = _faults(tmp_path, _plain("table: toyland13\n", "road").rstrip() + f"\n  - {entry}\n")
    assert any(fault.startswith(said) for fault in faults), faults


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_plain("", "{name: a, of: [road]}"), "of: refers to classes of a 'table', but no tabl"),
        (_plain("table: toyland\n", "road"), "table: no table 'toyland'; did you mean 'toyland13'"),
        (
            _plain("", "a").replace("classes:\n  - a", "table: toyland13\nclasses: trainids19"),
            "tabl",
        ),
        (
            "name: x\nbase: citiscapes\n",
            "base: no built-in dataset 'citiscapes'; did you mean 'cit",
        ),
        ("name: x\nbase: [a]\n", "base: no built-in dataset '['a']'"),
        (
            _plain("", "a").replace("[", "").replace("- a", "- {name: a, color: 3}"),
            "color: must be a color, thr",
        ),
        (
            _plain("label_format: ids\n", "a").replace("classes:\n  - a", "classes: camvid-colors"),
            "camvid-colors is a table of colours; it needs label_format rgb",
        ),
    ],
)
def test_a_fault_between_lists_and_tables_is_named(tmp_path, text, said):
    assert any(said in fault for fault in _faults(tmp_path, text))


def test_colours_merge_by_name_too(tmp_path):
    text = _plain(
        "label_format: rgb\ntable: camvid-colors\n",
        "{name: drivable, of: [road]}",
        "{name: other, of: [sky, building, pole, pavement, tree, signsymbol, fence, car, "
        "pedestrian, bicyclist], colors: [[1, 2, 3]]}",
    )
    table = _table(tmp_path, text)
    official = builtin_label_table("camvid-colors")
    assert table.ids[0] == official.ids[3]
    assert set(table.ids[1]) == {0x010203, *sum(official.ids, ())} - set(official.ids[3])
    assert table.ignore == {0}


# sets based on a built-in set


def test_a_set_may_start_from_a_built_in_one_and_change_a_line(tmp_path):
    plain = read_builtin("gta5")
    changed = read_declaration(files.dataset_yaml(tmp_path, "name: x\nbase: gta5\n"))
    for part in (
        "images",
        "labels",
        "stem_endings",
        "label_format",
        "table",
        "splits",
        "folders",
        "rules",
    ):
        assert getattr(changed, part) == getattr(plain, part)
    assert (changed.root, changed.name, changed.expected_counts) == (None, "x", {"train": 24966})
    fewer = read_declaration(
        files.dataset_yaml(tmp_path, "name: x\nbase: gta5\nexclude: [blank]\n")
    )
    assert fewer.expected_counts == {}
    text = "name: x\nbase: mapillary\nlabels: {train: training/v1.2/labels/*.png}\n"
    assert read_declaration(files.dataset_yaml(tmp_path, text)).labels == {
        "train": "training/v1.2/labels/*.png"
    }


def test_a_set_that_starts_from_another_is_found_where_the_other_lies(tmp_path):
    root = tmp_path / "data"
    name = "train/ulm/ulm_000000_000019"
    files.put(root / f"cityscapes/leftImg8bit/{name}_leftImg8bit.png", files.image_png(2, 18))
    ids = np.arange(36).reshape(2, 18) % 34
    files.put(root / f"cityscapes/gtFine/{name}_gtFine_labelIds.png", files.gray_png(ids))
    yaml = files.dataset_yaml(tmp_path, SIX)
    dataset = prepare_dataset(str(yaml), root=root).dataset
    assert dataset.classes is not None
    assert dataset.classes.names[0] == "flat"
    (sample,) = dataset.split("train")
    labels = read_train_ids(dataset.label_path(sample))
    np.testing.assert_array_equal(
        labels, to_train_ids(ids.astype(np.uint8), _table(tmp_path, SIX))[0]
    )


def test_missing_data_of_such_a_set_are_asked_for_by_its_yaml(tmp_path):
    yaml = files.dataset_yaml(tmp_path, SIX)
    with pytest.raises(DataError) as caught:
        prepare_dataset(str(yaml), root=tmp_path / "data")
    assert "https://www.cityscapes-dataset.com" in str(caught.value)
    assert f"udaseg prepare {yaml}" in str(caught.value)


# source and target with different class lists


def _set(name, classes, pixels=None, split="train"):
    space = None
    if classes is not None:
        space = ClassSpace(tuple(classes), tuple((i, i, i) for i in range(len(classes))))
    sample = Sample("a.png", "a.png", 4, 4, tuple(pixels or ()))
    return PreparedDataset(name, None, None, space, {split: (sample,)})


def _rows(source, target=None, validation=None):
    return _class_rows(source, source.split("train"), target, validation)


def test_the_plan_names_classes_that_one_side_has():
    source = _set("game", ["road", "car", "ufo"], [5, 5, 6])
    target = _set("city", ["car", "tram", "road"])
    expected = (
        "2 names in common; only in game: ufo (trained, never scored); "
        "only in city: tram (the network cannot predict them)"
    )
    assert _rows(source, None, target) == {"classes": expected}
    assert _rows(source, target) == {"classes": expected}
    assert _rows(source, _set("photos", None)) == {}
    assert _rows(source, _set("city", ["ufo", "road", "car"])) == {}


def test_the_plan_names_classes_that_no_source_label_holds():
    names = builtin_label_table("synthia19").classes.names
    pixels = [0 if name in ("terrain", "truck", "train") else 7 for name in names]
    rows = _rows(_set("synthia19", names, pixels), _set("cityscapes", names))
    assert list(rows) == ["unseen"]
    absent = "no training pixels for: terrain, truck, train (no label of synthia19 has them"
    assert absent in rows["unseen"]


def test_lists_without_a_common_name_stop_a_run_that_would_be_scored():
    source, target = _set("game", ["a", "b"], [1, 1]), _set("city", ["c"])
    message = r"city: its classes \(c\) have no name in common .* game \(a, b\)"
    with pytest.raises(DataError, match=message):
        _rows(source, target, target)
    assert "0 names in common" in _rows(source, target)["classes"]


def test_a_set_of_one_s_own_may_list_a_class_that_it_never_labels(tmp_path):
    text = _plain("", "{name: road, ids: [1]}", "{name: tram, ids: []}") + "ignore: [0]\n"
    files.put(tmp_path / "i/a.png", files.image_png(2, 2))
    files.put(tmp_path / "l/a.png", files.gray_png(np.array([[0, 1], [1, 1]])))
    dataset = open_dataset(str(files.dataset_yaml(tmp_path, text)), root=tmp_path / "data")
    assert dataset.split("train")[0].class_pixels == (3, 0)
