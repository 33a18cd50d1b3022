"""Known odd files: kept and listed by default, excluded when their rule is requested."""

import re

import numpy as np
import pytest

from tests.support import files
from udaseg.data.datasets.catalog import read_builtin
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError

SIZE = (6, 11)


@pytest.fixture
def gta5(tmp_path):
    for name in ("00001", "15188", "17705", "12160", "02154"):
        ids = np.full(SIZE, 7)
        files.put(tmp_path / f"gta5/images/{name}.png", files.image_png(*SIZE))
        files.put(tmp_path / f"gta5/labels/{name}.png", files.palette_png(ids))
    return tmp_path


def _stems(dataset):
    return [sample.image[-9:-4] for sample in dataset.split("train")]


def test_the_rules_of_gta5_are_the_published_lists():
    rules = read_builtin("gta5").rules
    assert {name: len(rule.stems) for name, rule in rules.items()} == {
        "blank": 2,
        "one-colour": 15,
        "iast": 25,
    }
    assert rules["blank"].stems == {"15188", "17705"}
    assert all(len(stem) == 5 for rule in rules.values() for stem in rule.stems)
    # RobustNet trains on 12,388 of the 12,403 files of the official training split
    assert 12403 - len(rules["one-colour"].stems) == 12388
    assert 24966 - len(rules["iast"].stems) == 24941


def test_odd_files_are_kept_and_listed_unless_a_rule_is_asked_for(gta5):
    report = prepare_dataset("gta5", root=gta5)
    assert len(_stems(report.dataset)) == 5
    assert not report.excluded
    known_lines = sorted(line.split("/")[-1] for line in report.known)
    assert [line.split(":")[:2] for line in known_lines] == [
        ["02154.png", " rule iast"],
        ["12160.png", " rule one-colour"],
        ["15188.png", " rule blank"],
        ["17705.png", " rule blank"],
    ]
    assert prepare_dataset("gta5", root=gta5).known == report.known  # a second run reports the same


def test_a_rule_leaves_its_files_out_by_option_and_by_yaml(gta5):
    report = prepare_dataset("gta5", root=gta5, options=PrepareOptions(exclude=("blank", "iast")))
    assert _stems(report.dataset) == ["00001", "12160"]
    assert len(report.excluded) == 3
    assert "15188.png: rule blank: the image is black or white" in report.excluded[1]
    assert not report.unchanged
    assert prepare_dataset(
        "gta5", root=gta5, options=PrepareOptions(exclude=("blank", "iast"))
    ).unchanged
    text = "name: clean\nbase: gta5\nexclude: [blank, one-colour, iast]\n"
    clean = prepare_dataset(str(files.dataset_yaml(gta5, text)), root=gta5)
    assert _stems(clean.dataset) == ["00001"]


def test_a_rule_is_remembered_when_the_set_is_opened_again(gta5):
    yaml = str(files.dataset_yaml(gta5, "name: clean\nbase: gta5\n"))
    prepare_dataset(yaml, root=gta5, options=PrepareOptions(exclude=("blank",)))
    assert _stems(open_dataset(yaml, root=gta5)) == ["00001", "02154", "12160"]


def test_a_damaged_file_that_a_rule_leaves_out_stops_nothing(gta5):
    (gta5 / "gta5/images/15188.png").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        prepare_dataset("gta5", root=gta5)
    assert (
        len(
            _stems(
                prepare_dataset(
                    "gta5", root=gta5, options=PrepareOptions(exclude=("blank",))
                ).dataset
            )
        )
        == 3
    )


@pytest.mark.parametrize(
    ("name", "rule", "said"),
    [
        ("gta5", "blanks", "gta5: no rule 'blanks'; did you mean 'blank'"),
        ("synthia", "blank", "synthia: no rule 'blank'; this dataset has no rules"),
    ],
)
def test_an_unknown_rule_is_refused(tmp_path, name, rule, said):
    with pytest.raises(DataError, match=said):
        prepare_dataset(name, root=tmp_path, options=PrepareOptions(exclude=(rule,)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("exclude: [x]", "exclude: no rule 'x'; this dataset has no rules"),
        ("exclude: x", "exclude: must be a list of rule names, got 'x'"),
        ("rules: [a]", "rules: must be `name: {why: ..., images: [...]}`, got ['a']"),
        ("rules: {a: {images: [b]}}", "rules.a.why: is missing: text"),
        (
            "rules: {a: {why: b, images: [1.5]}}",
            "rules.a.images[0]: must be text or a whole number",
        ),
        (
            "rules: {a: {why: b, images: [c], d: e}}",
            "rules.a.d: unknown key",
        ),
    ],
)
def test_a_fault_in_rules_is_named(tmp_path, line, said):
    with pytest.raises(DataError) as caught:
        read_declaration(files.dataset_yaml(tmp_path, f"name: x\nimages: '*.png'\n{line}\n"))
    assert re.search(rf":3:\d+: {re.escape(said)}", str(caught.value))
