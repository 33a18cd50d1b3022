"""Dataset YAMLs: their meaning, and errors with line numbers."""

import json
import re

import numpy as np
import pytest

from tests.support.files import dataset_yaml
from udaseg.data.datasets.catalog import builtin_names, read_builtin
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.prepare.convert import to_train_ids
from udaseg.data.toyland import city
from udaseg.errors import DataError

OWN = """\
name: my_city
images: images/**/*.png
labels: labels/**/*.png
match: stem
label_format: ids
classes: cityscapes19
ignore: [0, 255]
splits: {train: train.txt, val: val.txt}
"""

CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11}
CITYSCAPES |= {25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
# the 16 classes in the order of the 19 (no terrain, truck and train)
SYNTHIA = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12}
SYNTHIA |= {19: 13, 12: 14, 11: 15}


def _faults(folder, text):
    path = dataset_yaml(folder, text)
    with pytest.raises(DataError) as caught:
        read_declaration(path)
    assert caught.value.exit_code == 3
    message = str(caught.value).replace(f"{path}:", "").replace(str(path), "FILE")
    return [re.sub("^([0-9]+):[0-9]+:", r"\1:", line) for line in message.splitlines()]


def _listed(folder, *classes, top=""):
    lines = "".join(f"  - {entry}\n" for entry in classes)
    return f"name: x\nimages: i/*.png\nlabels: l/*.png\n{top}classes:\n{lines}"


@pytest.mark.parametrize(
    ("table", "expected", "void"),
    [
        ("cityscapes19", CITYSCAPES, [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 34, 255]),
        ("synthia16", SYNTHIA, [0, 13, 14, 16, 18, 20, 22]),
        ("trainids19", {i: i for i in range(19)}, [255]),
        ("camvid11", {i: i for i in range(11)}, [11, 255]),
        ("toyland13", {i: i for i in range(13)}, [255]),
    ],
)
def test_every_id_of_a_table_means_what_is_published(table, expected, void):
    ids = np.arange(400, dtype=np.uint16)[None]
    labels, unknown = to_train_ids(ids, builtin_label_table(table))
    got = {i: int(value) for i, value in enumerate(labels[0]) if value != IGNORE}
    assert got == expected
    assert set(unknown) == set(range(400)) - set(expected) - set(void)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_unknown_ids_are_ignored_and_counted_whatever_their_type(kind):
    ids = np.array([[7, 34, 254], [200, 200, 8]]).astype(kind)
    labels, unknown = to_train_ids(ids, builtin_label_table("cityscapes19"))
    assert labels.tolist() == [[0, IGNORE, IGNORE], [IGNORE, IGNORE, 1]]
    assert unknown == {254: 1, 200: 2}


def test_ids_that_no_table_can_hold_are_counted_too():
    ids = np.array([[-1, 2**24 + 7, 7]], np.int32)
    labels, unknown = to_train_ids(ids, builtin_label_table("cityscapes19"))
    assert labels.tolist() == [[IGNORE, IGNORE, 0]]
    assert unknown == {-1: 1, 2**24 + 7: 1}


@pytest.mark.parametrize("void", [-1, -(2**31), 2**24 + 7])
@pytest.mark.parametrize("rest", ["[1]", "[1, -7]"])
def test_any_whole_number_may_be_listed_as_an_id(tmp_path, void, rest):
    text = _listed(tmp_path, "{name: a, ids: [0]}", f"{{name: b, ids: {rest}}}")
    for top in (f"ignore: [{void}]\n", f"ignore: {void}\n"):
        table = read_declaration(dataset_yaml(tmp_path, text + top)).table
        assert table is not None
        labels, unknown = to_train_ids(np.array([[0, 1, void, -7]], np.int32), table)
        assert labels.tolist() == [[0, 1, IGNORE, 1 if "-7" in rest else IGNORE]]
        assert unknown == ({} if "-7" in rest else {-7: 1})


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_negative_id_is_no_id_of_an_unsigned_label(tmp_path, kind):
    text = _listed(tmp_path, "{name: a, ids: [0]}", "{name: b, ids: [1, -2]}", top="ignore: [-1]\n")
    table = read_declaration(dataset_yaml(tmp_path, text)).table
    assert table is not None
    last = np.iinfo(kind).max
    labels, unknown = to_train_ids(np.array([[0, 1, last - 1, last]], kind), table)
    assert labels.tolist() == [[0, 1, IGNORE, IGNORE]]
    assert unknown == {last - 1: 1, last: 1}


def test_synthia_shares_the_names_and_colours_of_cityscapes():
    sixteen, nineteen = (
        builtin_label_table(name).classes for name in ("synthia16", "cityscapes19")
    )
    there = dict(zip(nineteen.names, nineteen.colors, strict=True))
    assert set(nineteen.names) - set(sixteen.names) == {"terrain", "truck", "train"}
    assert all(
        there[name] == color for name, color in zip(sixteen.names, sixteen.colors, strict=True)
    )
    assert sixteen.train_ids_in(nineteen) == (*range(9), 10, 11, 12, 13, 15, 17, 18)


def test_cityscapes_has_its_official_colours():
    classes = builtin_label_table("cityscapes19").classes
    assert classes.colors[classes.names.index("sky")] == (70, 130, 180)
    assert classes == builtin_label_table("trainids19").classes


def test_the_table_of_toyland_is_toyland_s_own():
    names = builtin_label_table("toyland13").classes.names
    ids = [getattr(city, name.upper().replace(" ", "_")) for name in names]
    assert ids == list(range(len(names)))


def test_the_table_of_camvid_is_the_one_its_labels_were_made_with(sample_data):
    published = json.loads((sample_data / "mappings.json").read_text())
    classes = builtin_label_table("camvid11").classes
    assert list(classes.names) == published["classes"]
    assert [list(color) for color in classes.colors] == published["palette"]


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_set_is_declared_whole(name):
    declaration = read_builtin(name)
    assert declaration.name == name
    assert declaration.table is not None
    if not name.startswith("toyland"):
        assert {"title", "home", "licence", "download", "size"} <= set(declaration.about)
        assert declaration.expected_counts


def test_the_ten_lines_of_the_manual_are_read(tmp_path):
    declaration = read_declaration(dataset_yaml(tmp_path, OWN))
    assert declaration.root == tmp_path
    assert declaration.images == {"": "images/**/*.png"}
    assert declaration.splits == {"train": "train.txt", "val": "val.txt"}
    assert declaration.table is not None
    assert {0, 34, 255} <= declaration.table.ignore


def test_two_lines_are_enough_for_a_target(tmp_path):
    declaration = read_declaration(dataset_yaml(tmp_path, "name: x\nimages: '**/*.jpg'\n"))
    assert declaration.table is None
    assert declaration.splits == {"train": 1.0}


@pytest.mark.parametrize("missing", ["name", "images"])
def test_what_cannot_be_left_out_is_asked_for(tmp_path, missing):
    text = "".join(line for line in OWN.splitlines(True) if not line.startswith(missing))
    assert f"1: {missing}: is missing: " in "".join(_faults(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "label_format: ids",
            "label_fromat: ids",
            "5: label_fromat: unknown key; did you mean 'lab",
        ),
        (
            "ids\n",
            "id\n",
            "5: label_format: must be ids, rgb, synthia, coco, ",
        ),
        ("cityscapes19", "cityscape19", "6: classes: no table 'cityscape19'; did you mean 'citysc"),
        ("name: my_city", "name: ../x", "1: name: must be letters, digits"),
        ("name: my_city", "name: 7", "1: name: must be letters, digits"),
        ("match: stem", "match: {stip: x}", "4: match.stip: unknown key; did you mean 'strip'"),
        ("[0, 255]", "[0512]", "7: ignore: must be an id, a whole number, got '0512'"),
        ("[0, 255]", "[12:30]", "7: ignore: must be an id, a whole number, got '12:30'"),
        ("[0, 255]", "[0, 7]", "7: ignore: id 7 is the class road of cityscapes19"),
        (
            "val: val.txt",
            "val: 1.5",
            "8: splits.val: must be a list file, a folder, or a fraction above",
        ),
        ("val: val.txt", "val: true", "8: splits.val: must be a list file, a folder, or"),
        ("val: val.txt", "val: 0", "8: splits.val: must be a list file, a folder, or a fraction"),
        ("{train: train.txt, val: val.txt}", "{a: 0.7, b: 0.7}", "8: splits: the fractions add up"),
        (
            "splits: {train: train.txt, val: val.txt}",
            "splits: train.txt",
            "8: splits: must be a mapping of splits",
        ),
        ("images: images", "images: ../images", "2: images: must be a glob below the root"),
        (
            "images: images",
            "images: /images",
            "2: images: must be a glob below the root, or one per split (`root: FOLDER` sets",
        ),
        (
            "images: images/**/*.png",
            "images: 3",
            "2: images: must be a glob below the root, or",
        ),
        ("images/**/*.png", "{train: t/*.png}", "8: splits: images are already given per split"),
        ("name: my_city", "name: my_city\nname: x", "2: name: is written twice"),
        ("match: stem", "root:", "4: root: has no value; write one, or remove the key"),
        ("match: stem", "folders: abc", "4: folders: must be a list of strings"),
        (
            "match: stem",
            "expected: {train: many}",
            "4: expected.train: must be a whole number",
        ),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, old, new, said):
    assert old in OWN
    faults = _faults(tmp_path, OWN.replace(old, new, 1))
    assert any(line.startswith(said) for line in faults), faults


def test_all_faults_are_named_at_once(tmp_path):
    faults = _faults(tmp_path, "name: ''\nimages: /x\nimage: 3\n")
    assert [line.split(":")[0] for line in faults] == ["1", "2", "3"]


def test_labels_without_classes_are_refused(tmp_path):
    faults = _faults(tmp_path, "name: x\nimages: i/*.png\nlabels: l/*.png\n")
    assert faults == ["3: labels: labels need 'classes': a table's name or a list"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "{name: b, ids: [1, x]}",
            "6: classes[1].ids[1]: must be an id, a whole number",
        ),
        ("{name: b, id: [1]}", "6: classes[1].id: unknown key; did you mean 'ids'?"),
        ("{name: b, color: }", "6: classes[1].color: has no value"),
        ("{ids: [1]}", "6: classes[1].name: is missing: text"),
        ("7", "6: classes[1]: must be a name or {name, ids, color}, got 7"),
        ("{name: b, color: [1, 2]}", "6: classes[1].color: must be a color, three numbers"),
        ("{name: b, color: [1, 2, 256]}", "6: classes[1].color[2]: must be in [0, 255], got 256"),
        ("{name: b, ids: [0]}", "6: classes[1]: id 0 belongs to both a and b"),
        ("{name: a, ids: [1]}", "4: classes: the name 'a' is given twice"),
    ],
)
def test_a_fault_in_the_list_of_classes_is_named(tmp_path, entry, said):
    faults = _faults(tmp_path, _listed(tmp_path, "{name: a, ids: [0]}", entry))
    assert any(line.startswith(said) for line in faults), faults


def test_a_list_may_be_names_alone_merges_and_words_that_yaml_would_change(tmp_path):
    text = _listed(tmp_path, "road", "{name: on, ids: [1, 5, 300]}", "no")
    table = read_declaration(dataset_yaml(tmp_path, text)).table
    assert table is not None
    assert table.classes.names == ("road", "on", "no")
    assert table.ids == ((0,), (1, 5, 300), (2,))


def test_colours_are_the_ids_of_a_colour_coded_set(tmp_path):
    text = _listed(
        tmp_path,
        "{name: road, color: [1, 2, 3], colors: [[0, 0, 9]]}",
        "{name: sky, color: [255, 0, 0]}",
        top="label_format: rgb\nignore: [[0, 0, 0]]\n",
    )
    table = read_declaration(dataset_yaml(tmp_path, text)).table
    assert table is not None
    assert table.ids == ((0x010203, 9), (0xFF0000,))
    assert table.ignore == {0}


def test_a_table_gives_its_colours_to_a_colour_coded_set(tmp_path):
    text = OWN.replace("ids\n", "rgb\n").replace("[0, 255]", "[[0, 0, 0]]")
    table = read_declaration(dataset_yaml(tmp_path, text)).table
    assert table is not None
    assert table.ids[0] == (128 << 16 | 64 << 8 | 128,)
    assert table.ignore == {0}


def test_the_root_may_name_a_variable(tmp_path, monkeypatch):
    path = dataset_yaml(tmp_path, "name: x\nimages: '*.png'\nroot: ${MY_IMAGES}/a\n")
    monkeypatch.delenv("MY_IMAGES", raising=False)
    with pytest.raises(DataError, match=r"own.yaml:3:1: root: the environment variable MY_IMAGES"):
        read_declaration(path)
    monkeypatch.setenv("MY_IMAGES", str(tmp_path / "there"))
    assert read_declaration(path).root == tmp_path / "there" / "a"


def test_the_root_may_be_at_home_or_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for written, expected in (("~/x", tmp_path / "home" / "x"), ("y", tmp_path / "y")):
        path = dataset_yaml(tmp_path, f"name: x\nimages: '*.png'\nroot: {written}\n")
        assert read_declaration(path).root == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "must be a YAML mapping"),
        ("name: [x\n", "not YAML"),
        ("name: x\n\timages: y\n", "not YAML"),
        ("name: x\n---\nname: y\n", "second document"),
        ("name: !!python/object/apply:os.system [ls]\n", "tags are not allowed"),
        ("name: &a [1]\nimages: *a\n", "alias"),
        ("name: x\n<<: {images: y}\n", "merge key <<"),
        ("a: &a [x]\nb: &b [*a, *a]\nname: *b\n", "alias"),
        ("name: " + "[" * 6000, "32 levels"),
        ("name: " + "x" * 300_000, "larger than 200000 bytes"),
        ("name: !!timestamp x\n", "tags are not allowed"),
        ("name: !!int x\n", "tags are not allowed"),
        ("name: !!bool maybe\n", "tags are not allowed"),
        ("name: " + "-" * 400 + "\n" + "[" * 900, "not"),
        ("name: \x00\n", "not YAML"),
    ],
)
def test_a_text_that_is_no_dataset_yaml_is_refused_in_a_sentence(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_declaration(dataset_yaml(tmp_path, text))


def test_text_may_have_several_lines_and_joiners(tmp_path):
    text = "name: x\nimages: '*.png'\nlabels: '*.txt'\ntitle: >\n  two\n  lines\n"
    text += 'classes: ["\u0915\u094d\u200d\u0937", b]\n'
    declaration = read_declaration(dataset_yaml(tmp_path, text))
    assert declaration.about["title"] == "two lines\n"
    assert declaration.table.classes.names[0] == "\u0915\u094d\u200d\u0937"


def test_a_layout_may_have_no_labels_and_stand_alone(tmp_path):
    text = "name: x\nimages: a/*.png\nlabels: b/*.png\nclasses: [c]\n"
    text += "layouts: {images: d/*.png, labels: null}\n"
    (layout,) = read_declaration(dataset_yaml(tmp_path, text)).layouts
    assert (layout.images, layout.labels) == ({"": "d/*.png"}, {})


def test_many_faults_are_named_in_a_moment(tmp_path):
    faults = _faults(tmp_path, f"name: x\nimages: '*.png'\nfolders: {list(range(20_000))}\n")
    assert len(faults) == 101
    assert faults[-1].startswith("… and 19900 more")


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes("name: straße".encode("latin-1"))
    with pytest.raises(DataError, match=r":1:11: not UTF-8"):
        read_declaration(tmp_path / "x.yaml")


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_declaration(tmp_path / "x.yaml")
