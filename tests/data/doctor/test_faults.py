"""Doctor reports every fault added to a clean dataset, has no false alarms and changes no file."""

import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import files, sick
from tests.support.sick import FAULTS, Patient
from udaseg.data.datasets.index import read_index
from udaseg.data.doctor.doctor import doctor
from udaseg.data.doctor.findings import KINDS
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[3]


def _examined(folder, **how):
    return doctor(str(folder / "own.yaml"), root=folder.parent / "data", workers=2, **how)


def _told(report):
    """Count the (code, path) pairs of all examples; path is None for findings without a file."""
    return Counter(
        (finding.code, path)
        for finding in report.findings
        for path in ([shown.path for shown in finding.examples] or [None])
    )


def _tree(folder):
    """Return mode, modification time and content hash (or link target) of every entry."""
    entries = {}
    for top, folders, names in os.walk(folder):
        for path in (Path(top, name) for name in (*folders, *names)):
            facts = path.lstat()
            data = b""
            if path.is_symlink():
                data = os.fsencode(path.readlink())
            elif path.is_file():
                data = path.read_bytes()
            entries[path] = (facts.st_mode, facts.st_mtime_ns, hashlib.sha256(data).hexdigest())
    return entries


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy") / "set"
    sick.clean(folder)
    return folder


def test_a_clean_set_has_no_finding_at_all(healthy):
    report = _examined(healthy)
    assert report.findings == ()
    (facts,) = report.sets
    assert {name: split.images for name, split in facts.splits.items()} == {"train": 60, "val": 12}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_is_found_and_nothing_else(tmp_path, name):
    sick.clean(tmp_path / "set", train=12)
    expected = Counter(FAULTS[name](Patient(tmp_path / "set", tmp_path / "outside")))
    assert _told(_examined(tmp_path / "set")) == expected


def _all_found(tmp_path, names, seed=0):
    """Add faults to a clean set; assert that doctor reports all of them and no other file."""
    sick.clean(tmp_path / "set", seed)
    patient = Patient(tmp_path / "set", tmp_path / "outside")
    expected = [case for name in names for case in FAULTS[name](patient)]
    before = _tree(tmp_path)
    report = _examined(tmp_path / "set")
    assert _tree(tmp_path) == before
    counts = Counter(code for code, _ in expected)
    assert {finding.code: finding.count for finding in report.findings} == counts
    assert set(_told(report)) <= set(expected)  # a finding has at most five examples
    return report


def test_all_faults_together_are_found_none_is_invented_and_nothing_is_changed(tmp_path):
    report = _all_found(tmp_path, FAULTS)
    assert len(FAULTS) >= 25
    unknown = next(finding for finding in report.findings if finding.code == "unknown-id")
    assert unknown.amounts == {"40": 6, "300": 7}


def _campaign(tmp_path, trials):
    rng = np.random.default_rng(7)
    for trial in range(trials):
        chosen = rng.choice(len(FAULTS), 25, replace=False)
        names = [list(FAULTS)[number] for number in sorted(chosen)]
        _all_found(tmp_path / str(trial), names, seed=trial)


def test_any_25_faults_are_found(tmp_path):
    _campaign(tmp_path, 2)


@pytest.mark.faults
def test_any_25_faults_are_found_in_many_sets(tmp_path):
    sets = 100
    _campaign(tmp_path, sets)
    sys.stdout.write(
        f"\ndoctor: {sets}/{sets} sets with 25 of {len(FAULTS)} kinds of faults: all found, none "
        f"invented; seed 7, bound {3 / sets:.2f} of sets like these\n"
    )


# faults that need more than a damaged file


def test_a_file_without_the_right_to_read_it_is_named(healthy, monkeypatch):
    image = healthy / "train/images/003.png"
    opened = Path.open

    def refuse(self, *words, **how):
        if self == image:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *words, **how)

    monkeypatch.setattr(Path, "open", refuse)
    assert _told(_examined(healthy)) == {("unreadable", image): 1}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    sick.clean(tmp_path / "set", text=sick.YAML.replace("train/images/*", "train/images/**/*"))
    closed = tmp_path / "set/train/images/closed"
    closed.mkdir()
    listed = os.scandir

    def refuse(path="."):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert _told(_examined(tmp_path / "set")) == {("unreadable", closed): 1}


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    sick.clean(tmp_path / "set")
    pair = Patient(tmp_path / "set", tmp_path).pair()
    for path in pair:
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    report = _examined(tmp_path / "set")
    assert [(finding.code, finding.count) for finding in report.findings] == [("odd-name", 2)]
    json.dumps(report.to_dict(), allow_nan=False).encode()


def test_a_glob_of_labels_that_matches_nothing_is_one_fault(tmp_path):
    text = sick.YAML.replace("train/labels/*", "train/lables/*")
    report = _examined(sick.clean(tmp_path / "set", text=text).parent)
    assert [finding.code for finding in report.with_severity("error")] == ["no-labels"]


def test_a_list_that_names_what_is_not_there_is_named(tmp_path):
    text = sick.YAML.replace("{train: train/images/*, val: val/images/*}", "train/images/*")
    text = text.replace("{train: train/labels/*, val: val/labels/*}", "train/labels/*")
    yaml = sick.clean(tmp_path / "set", text=text + "splits: {train: list.txt}\n")
    names = [f"{number:03d}" for number in range(sick.TRAIN)]
    (yaml.parent / "list.txt").write_text("\n".join([*names, "gone"]))
    report = _examined(yaml.parent)
    assert _told(report) == {("split-list", yaml.parent / "list.txt"): 1}
    assert report.findings[0].examples[0].note == "lists gone"


def test_a_listed_image_without_a_label_is_one_fault(tmp_path):
    text = sick.YAML.replace("{train: train/images/*, val: val/images/*}", "train/images/*")
    text = text.replace("{train: train/labels/*, val: val/labels/*}", "train/labels/*")
    yaml = sick.clean(tmp_path / "set", text=text + "splits: {train: list.txt}\n")
    names = [f"{number:03d}" for number in range(sick.TRAIN)]
    (yaml.parent / "list.txt").write_text("\n".join(names))
    (yaml.parent / "train/labels/007.png").unlink()
    assert _told(_examined(yaml.parent)) == {
        ("image-without-label", yaml.parent / "train/images/007.png"): 1
    }


def test_a_label_of_an_image_that_is_not_read_says_so(tmp_path):
    yaml = sick.clean(tmp_path / "set")
    image = yaml.parent / "train/images/007.png"
    image.rename(image.with_suffix(".gif"))
    examined = _examined(yaml.parent)
    (unmatched,) = [each for each in examined.findings if each.code == "label-without-image"]
    assert unmatched.examples[0].note == "the format of 007.gif is not read"


def test_lists_that_share_an_image_leak(tmp_path):
    text = sick.YAML.replace("{train: train/images/*, val: val/images/*}", "train/images/*")
    text = text.replace("{train: train/labels/*, val: val/labels/*}", "train/labels/*")
    yaml = sick.clean(tmp_path / "set", text=text + "splits: {train: a.txt, val: b.txt}\n")
    names = [f"{number:03d}" for number in range(sick.TRAIN)]
    (yaml.parent / "a.txt").write_text("\n".join(names[:41]))
    (yaml.parent / "b.txt").write_text("\n".join(names[40:]))
    assert _told(_examined(yaml.parent)) == {
        ("leaked-image", yaml.parent / "train/images/040.png"): 1
    }


def test_labels_of_another_meaning_are_told_by_what_they_leave_out(tmp_path):
    text = sick.YAML.replace("[road, sky, car, tree]", "[{name: road, ids: [0]}]")
    text = text.replace("[255]", "[1, 2, 3, 255]")
    report = _examined(sick.clean(tmp_path / "set", text=text).parent)
    assert {finding.code: finding.count for finding in report.findings} == {"mostly-ignored": 2}


def test_only_the_splits_that_are_asked_for_are_read(tmp_path):
    sick.clean(tmp_path / "set")
    image, _ = Patient(tmp_path / "set", tmp_path).pair()
    image.write_bytes(b"")
    assert not _examined(tmp_path / "set", splits=["val"]).findings
    assert _told(_examined(tmp_path / "set", splits=["train"])) == {("empty-file", image): 1}
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        _examined(tmp_path / "set", splits=["test"])


def test_unknown_ids_are_not_counted_as_ignored(tmp_path):
    sick.clean(tmp_path / "set", train=12)
    patient = Patient(tmp_path / "set", tmp_path)
    FAULTS["id_of_no_class"](patient)
    (facts,) = _examined(tmp_path / "set").sets
    labels = [np.asarray(Image.open(path)) for path in (tmp_path / "set/train/labels").iterdir()]
    void, strange = (sum(int((ids == n).sum()) for ids in labels) for n in (255, 40))
    every = sum(ids.size for ids in labels)
    assert strange == 6
    share = facts.splits["train"].ignored
    assert share == pytest.approx(void / (every - strange), abs=1e-6)


def test_black_images_are_no_copies_of_each_other(tmp_path):
    folder = sick.clean(tmp_path / "set", train=12).parent
    patient = Patient(folder, tmp_path)
    images = [patient.pair(split)[0] for split in ("train", "train", "val")]
    for image in images:
        image.write_bytes(sick.rgb_png(np.zeros((sick.HEIGHT, sick.WIDTH, 3), np.uint8)))
    assert _told(_examined(folder)) == Counter(("blank-image", image) for image in images)


def test_every_split_that_begins_with_train_is_trained_on(tmp_path):
    text = sick.YAML.replace("{train: train/", "{train-day: train/")
    folder = sick.clean(tmp_path / "set", text=text, train=12).parent
    expected = Counter(FAULTS["validation_image_in_training"](Patient(folder, tmp_path)))
    assert _told(_examined(folder)) == expected


# prepared datasets


@pytest.fixture
def prepared(tmp_path):
    yaml = sick.clean(tmp_path / "set", train=12)
    prepare_dataset(str(yaml), root=tmp_path / "data")
    return tmp_path


def _of_prepared(home):
    return doctor("small", root=home / "data")


def test_a_prepared_set_is_as_clean_as_its_source(prepared):
    before = _tree(prepared)
    assert _of_prepared(prepared).findings == ()
    assert _tree(prepared) == before


def test_what_changed_since_it_was_prepared_is_named(prepared):
    dataset = read_index(prepared / "data/prepared/small")
    images = [dataset.image_path(sample) for sample in dataset.splits["train"][:4]]
    images[3].write_bytes(sick.rgb_png(sick.picture([9, 52])))
    labels = [dataset.label_path(sample) for sample in dataset.splits["train"][4:7]]
    images[0].write_bytes(sick.rgb_png(sick.picture([9, 50], 60, 64)))
    images[1].unlink()
    images[2].write_bytes(images[2].read_bytes()[:-30])
    labels[0].unlink()
    labels[1].write_bytes(sick.files.gray_png(sick.ids([9, 51])))
    labels[2].write_bytes(sick.files.gray_png(np.full((48, 64), 9)))
    assert set(_told(_of_prepared(prepared))) == {
        *(("stale-index", path) for path in (images[0], images[3], labels[1], labels[2])),
        ("size-mismatch", dataset.label_path(dataset.splits["train"][0])),
        ("mixed-sizes", None),
        *(("missing-file", path) for path in (images[1], labels[0])),
        ("damaged", images[2]),
        ("unknown-id", labels[2]),
    }


def test_what_was_left_out_of_a_prepared_set_is_told(tmp_path):
    yaml = sick.clean(tmp_path / "set", train=12)
    (tmp_path / "set/train/labels/005.png").unlink()
    prepare_dataset(str(yaml), root=tmp_path / "data", options=PrepareOptions(max_bad=1))
    (finding,) = _of_prepared(tmp_path).findings
    assert (finding.code, finding.severity, finding.count) == ("left-out", "info", 1)
    assert "005.png: has no label" in finding.examples[0].note


# all codes


@pytest.mark.parametrize(("bits", "code"), [(12, "fewer-bits"), (8, "fewer-bits"), (16, None)])
def test_16_bit_images_that_use_fewer_bits_are_told_as_a_set(tmp_path, bits, code):
    folder = tmp_path / "photos"
    for number, own in ((0, 8), (1, bits), (2, bits)):
        deep = sick.picture([3, number]).astype(np.uint16) << (own - 8)
        files.put(folder / f"{number}.png", files.deep_png(deep))
    report = doctor(str(folder), root=tmp_path)
    found = [(one.code, one.severity, one.count) for one in report.findings if "bits" in one.code]
    assert found == ([(code, "warning", 3)] if code else [])
    assert not any(finding.code == "blank-image" for finding in report.findings)


def test_a_value_above_the_declared_bits_is_an_error(tmp_path):
    yaml = sick.clean(tmp_path / "set", text=sick.YAML + "bits: 10\n", train=12)
    for number, bits in ((0, 10), (1, 12)):
        deep = sick.picture([3, number]).astype(np.uint16) << (bits - 8)
        files.put(tmp_path / f"set/train/images/{number:03d}.png", files.deep_png(deep))
    (finding,) = [one for one in doctor(str(yaml), root=tmp_path).findings if "bits" in one.code]
    assert (finding.code, finding.severity) == ("above-bits", "error")
    assert [path.name for path in finding.files] == ["001.png"]
    assert finding.examples[0].note.endswith("read as 10 bits")


def test_every_kind_is_explained_on_the_page():
    page = (REPOSITORY / "docs/doctor.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(KINDS)


def test_every_kind_says_what_is_so_and_what_helps():
    for code, kind in KINDS.items():
        assert code == code.lower()
        assert kind.problem
        assert kind.fix
        assert len(f"         -> {kind.fix}") <= 120, code
