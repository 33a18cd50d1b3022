"""A name belongs to one data set: another YAML of that name does not take its place."""

import json
import shutil

import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.support import files
from tests.support.own import SIZE, own_set, put_label, state
from udaseg.data.datasets.catalog import builtin_names
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError


@pytest.fixture
def data(tmp_path):
    """Prepare the set of A/own.yaml, and return the data folder."""
    prepare_dataset(str(own_set(tmp_path / "A")), root=tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def other(tmp_path):
    """Return B/own.yaml, with the images of A/own.yaml and labels of zeros."""
    yaml = own_set(tmp_path / "B")
    for path in (tmp_path / "B/labels").iterdir():
        path.write_bytes(files.gray_png(np.zeros(SIZE, int)))
    return yaml


def _forget_yaml(data):
    """Make the prepared set one of an earlier version, which stored no YAML."""
    path = data / "prepared/own/source.json"
    document = json.loads(path.read_text())
    del document["declared_in"]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_another_yaml_of_the_same_name_is_refused_and_changes_nothing(
    tmp_path, data, other, version
):
    if version == "earlier":
        _forget_yaml(data)
    before = state(data / "prepared/own")
    output = udaseg("prepare", other, "--root", data, cwd=tmp_path, expect=3)
    said = " ".join(output.stderr.split())
    owner = tmp_path / ("A/own.yaml" if version == "this" else "A")
    assert f"the name 'own' belongs to the data set of {owner}" in said
    assert f"delete {data / 'prepared/own'}" in said
    with pytest.raises(DataError, match="belongs to the data set of"):
        open_dataset(str(other), root=data)
    assert state(data / "prepared/own") == before


def test_what_the_refusal_advises_helps(tmp_path, data, other):
    other.write_text(other.read_text().replace("name: own", "name: b"))
    assert prepare_dataset(str(other), root=data).name == "b"
    other.write_text(other.read_text().replace("name: b", "name: own"))
    shutil.rmtree(data / "prepared/own")
    assert prepare_dataset(str(other), root=data).dataset.image_root == tmp_path / "B"


def test_two_yamls_in_one_folder_with_other_classes_are_two_sets(tmp_path, data):
    second = tmp_path / "A/second.yaml"
    second.write_text((tmp_path / "A/own.yaml").read_text().replace("[a, b, c]", "[b, a, c]"))
    with pytest.raises(DataError, match=r"belongs to the data set of .*A/own\.yaml"):
        prepare_dataset(str(second), root=data)


def test_the_owner_may_change_files_and_yaml_on_purpose(tmp_path, data):
    yaml = tmp_path / "A/own.yaml"
    put_label(tmp_path / "A", 2, seed=99)
    assert prepare_dataset(str(yaml), root=data).read == 1
    yaml.write_text(yaml.read_text().replace("[a, b, c]", "[b, a, c]"))
    assert prepare_dataset(str(yaml), root=data).classes == ("b", "a", "c")
    shutil.copytree(tmp_path / "A", tmp_path / "C")
    yaml.write_text(f"{yaml.read_text()}root: {tmp_path / 'C'}\n")
    assert prepare_dataset(str(yaml), root=data).dataset.image_root == tmp_path / "C"


def test_a_set_that_was_moved_keeps_its_name(tmp_path, data):
    (tmp_path / "A").rename(tmp_path / "moved")
    report = prepare_dataset(str(tmp_path / "moved/own.yaml"), root=data)
    assert report.dataset.image_root == tmp_path / "moved"
    (tmp_path / "moved/own.yaml").rename(tmp_path / "moved/mine.yaml")
    put_label(tmp_path / "moved", 2, seed=99)
    assert prepare_dataset(str(tmp_path / "moved/mine.yaml"), root=data).read == 1


def test_a_copy_of_the_yaml_declares_the_same_set(tmp_path, data):
    text = f"{(tmp_path / 'A/own.yaml').read_text()}root: {tmp_path / 'A'}\n"
    first, copy = (
        files.dataset_yaml(tmp_path / folder, text, "own.yaml") for folder in ("A", "experiment")
    )
    prepare_dataset(str(first), root=data)
    assert prepare_dataset(str(copy), root=data).unchanged
    put_label(tmp_path / "A", 2, seed=99)
    assert prepare_dataset(str(copy), root=data).read == 1
    assert json.loads((data / "prepared/own/source.json").read_text())["declared_in"] == str(copy)


def test_a_set_of_an_earlier_version_is_prepared_again_by_its_yaml(tmp_path, data):
    _forget_yaml(data)
    put_label(tmp_path / "A", 2, seed=99)
    assert prepare_dataset(str(tmp_path / "A/own.yaml"), root=data).read == 1


@pytest.mark.parametrize("name", builtin_names())
def test_the_name_of_a_built_in_set_is_refused(tmp_path, name):
    yaml = own_set(tmp_path / "A")
    yaml.write_text(yaml.read_text().replace("name: own", f"name: {name}"))
    with pytest.raises(DataError) as caught:
        open_dataset(str(yaml), root=tmp_path / "data")
    assert str(caught.value) == (
        f"{yaml}:1:1: name: '{name}' is a built-in data set; choose another name"
    )
