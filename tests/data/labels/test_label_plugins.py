"""Label formats of other packages: how they are found, checked, recorded and missed."""

import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import udaseg
from tests.cli.running import udaseg as command
from tests.contracts.label_format import LabelFormatContract
from tests.support import files
from udaseg import plugins
from udaseg.data.datasets.declaration import read_declaration
from udaseg.data.labels.formats import label_reader
from udaseg.data.labels.read import read_label_ids, read_train_ids
from udaseg.data.open import open_dataset
from udaseg.data.prepare.manifest import read_manifest
from udaseg.errors import DataError, EnvironmentFault

GROUP = "udaseg.label_formats"
PACKAGE = "udaseg-npy"


def read_npy(path, data):
    """Read a NumPy file, as a plug-in would: it is no image."""
    return np.load(io.BytesIO(data))


@pytest.fixture(autouse=True)
def fresh():
    """Forget the readers of other tests."""
    label_reader.cache_clear()
    yield
    label_reader.cache_clear()


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Return a function that installs a package whose format is `npy`, in place of the last one.

    It takes what the entry point refers to; without any, no package is installed.
    """
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def use(reader=read_npy, package=PACKAGE):
        label_reader.cache_clear()
        for path in site.glob("*/*"):
            path.unlink()
        for path in site.glob("*"):
            path.rmdir()
        if reader is not None:
            folder = site / f"{package.replace('-', '_')}-1.0.dist-info"
            files.put(folder / "METADATA", f"Name: {package}\nVersion: 1.0\n".encode())
            files.put(folder / "entry_points.txt", f"[{GROUP}]\nnpy = npy_labels:read\n".encode())
            module = ModuleType("npy_labels")
            module.read = reader
            monkeypatch.setitem(sys.modules, "npy_labels", module)
        importlib.invalidate_caches()

    return use


def _npy(ids):
    buffer = io.BytesIO()
    np.save(buffer, ids)
    return buffer.getvalue()


@pytest.fixture
def own(tmp_path):
    for number, name in enumerate("abc"):
        files.put(tmp_path / f"mine/images/{name}.png", files.image_png(6, 8, number))
        files.put(tmp_path / f"mine/labels/{name}.npy", _npy(np.full((6, 8), number, np.int64)))
    return files.dataset_yaml(
        tmp_path / "mine",
        "name: own\nimages: images/*.png\nlabels: labels/*.npy\nlabel_format: npy\n"
        "classes: [road, sky, car]\n",
    )


def _prepare(yaml, tmp_path, **options):
    return udaseg.prepare(
        yaml, root=tmp_path / "data", options=udaseg.PrepareOptions(workers=1, **options)
    )[0]


class TestNpy(LabelFormatContract):
    count = 1000

    @pytest.fixture(autouse=True)
    def use(self, plugin):
        plugin()

    def read(self, path, data):
        return read_label_ids(path, "npy", data=data)

    def encode(self, ids):
        return _npy(ids)

    def wrong_forms(self):
        return {"an image": files.gray_png(np.zeros((2, 2), int))}


def test_labels_that_are_no_images_are_prepared(plugin, own, tmp_path):
    plugin()
    report = _prepare(own, tmp_path)
    assert report.counts == {"train": 3}
    assert report.class_shares == pytest.approx({"road": 1 / 3, "sky": 1 / 3, "car": 1 / 3})
    labels = [read_train_ids(report.dataset.label_path(s))[0, 0] for s in report.samples]
    assert labels == [0, 1, 2]
    assert read_manifest(report.folder).label_reader[:2] == ("npy", PACKAGE)
    assert _prepare(own, tmp_path).unchanged
    diagnosis = udaseg.doctor(own, root=tmp_path / "empty")
    assert {finding.code for finding in diagnosis.findings} == {
        *("tiny-split", "small-image", "one-class")
    }


def test_entry_points_are_read_for_other_names_only(plugin, monkeypatch, tmp_path):
    plugin()
    looked_up, entry_points = [], plugins.entry_points

    def noted(*, group):
        looked_up.append(group)
        return entry_points(group=group)

    monkeypatch.setattr(plugins, "entry_points", noted)
    text = "name: x\nimages: i/*.png\nlabels: l/*.png\nclasses: [a]\nlabel_format: FORMAT\n"
    for name in ("ids", "rgb", "synthia"):
        color = text.replace("[a]", "[{name: a, color: [1, 2, 3]}]")
        read_declaration(files.dataset_yaml(tmp_path, color.replace("FORMAT", name)))
        label_reader(name)
    assert looked_up == []
    declaration = read_declaration(files.dataset_yaml(tmp_path, text.replace("FORMAT", "npy")))
    assert (declaration.label_format, declaration.label_package.name) == ("npy", PACKAGE)
    assert set(looked_up) == {GROUP}


LISTED = "ids, rgb, synthia, coco, labelme, cvat, label_studio"
LAST = "cityscapes_polygons"


@pytest.mark.parametrize(
    ("written", "installed", "said"),
    [
        ("npi", True, f"must be {LISTED}, {LAST} or npy, got 'npi'; did you mean 'npy'?"),
        ("npy", False, f"must be {LISTED} or {LAST}, got 'npy'"),
        ("id", False, f"must be {LISTED} or {LAST}, got 'id'; did you mean 'ids'?"),
        ("3", True, f"must be {LISTED}, {LAST} or npy, got 3"),
        ("[ids]", True, f"must be {LISTED}, {LAST} or npy, got ['ids']"),
    ],
)
def test_an_unknown_format_is_refused_with_its_line(plugin, own, written, installed, said):
    plugin(read_npy if installed else None)
    own.write_text(own.read_text().replace("label_format: npy", f"label_format: {written}"))
    with pytest.raises(DataError) as caught:
        read_declaration(own)
    where = "(no installed package has it in udaseg.label_formats)"
    assert str(caught.value) == f"{own}:4:1: label_format: {said} {where}"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (np.zeros((6, 8)), "must return (H, W) integers, returned float64 (6, 8)"),
        (np.zeros((6, 8), bool), "must return (H, W) integers, returned bool (6, 8)"),
        (np.zeros((6, 8, 1), int), "must return (H, W) integers, returned int64 (6, 8, 1)"),
        (np.zeros(48, int), "must return (H, W) integers, returned int64 (48,)"),
        ([[1, 2]], "returned list, no array"),
        (None, "returned NoneType, no array"),
    ],
)
def test_a_package_that_returns_something_else_is_named_with_the_file(
    plugin, own, tmp_path, returned, said
):
    plugin(lambda path, data: returned)
    with pytest.raises(EnvironmentFault) as caught:
        _prepare(own, tmp_path, max_bad=3)
    path = own.parent / "labels/a.npy"
    assert str(caught.value) == f"{path}: label_format npy of package {PACKAGE} {said}"


def test_a_file_that_a_package_cannot_read_is_a_damaged_file(plugin, own, tmp_path):
    plugin()
    path = files.put(own.parent / "labels/b.npy", b"no array")
    with pytest.raises(DataError) as caught:
        _prepare(own, tmp_path)
    assert caught.value.exit_code == 3
    assert f"{path}: label_format npy of package {PACKAGE}: ValueError: " in str(caught.value)
    report = _prepare(own, tmp_path, max_bad=1)
    assert (report.counts, len(report.bad)) == ({"train": 2}, 1)
    finding = udaseg.doctor(own, root=tmp_path).errors[0]
    assert (finding.code, finding.files) == ("label-form", (path,))
    assert PACKAGE in finding.examples[0].note
    path.unlink()
    assert udaseg.doctor(own, root=tmp_path).errors[0].code == "image-without-label"


@pytest.mark.parametrize("error", [DataError("x.npy: said by the package"), EnvironmentFault("y")])
def test_errors_of_udaseg_in_a_package_are_kept(plugin, tmp_path, error):
    def fail(path, data):
        raise error

    plugin(fail)
    with pytest.raises(type(error)) as caught:
        read_label_ids(files.put(tmp_path / "x.npy", b"x"), "npy")
    assert caught.value is error


def test_an_entry_point_that_is_no_function_is_refused(plugin, tmp_path):
    plugin("a string")
    with pytest.raises(EnvironmentFault, match=f"{PACKAGE}: str is not a function"):
        read_label_ids(files.put(tmp_path / "x.npy", b"x"), "npy")


@pytest.mark.parametrize("order", ["F", "reversed", ">u2", "read-only"])
def test_arrays_of_any_layout_are_taken(plugin, own, tmp_path, order):
    def read(path, data):
        labels = read_npy(path, data).astype(np.uint8)
        if order == "reversed":
            return labels[::-1, ::-1]
        if order == "read-only":
            labels.flags.writeable = False
            return labels
        return np.asfortranarray(labels) if order == "F" else labels.astype(order)

    plugin(read)
    assert _prepare(own, tmp_path).class_shares["sky"] == pytest.approx(1 / 3)


# the package is gone


def test_a_prepared_set_needs_the_package_only_for_new_labels(plugin, own, tmp_path):
    plugin()
    root = tmp_path / "data"
    folder = _prepare(own, tmp_path).folder
    plugin(None)
    for name in ("own", str(own)):
        dataset = open_dataset(name, root=root)
        assert [read_train_ids(dataset.label_path(s))[0, 0] for s in dataset.split("train")] == [
            *(0, 1, 2)
        ]
        (result,) = udaseg.verify_data(name, root=root)
        assert (result.ok, result.missing_package) == (True, PACKAGE)
    assert _prepare(own, tmp_path).unchanged
    assert udaseg.doctor("own", root=root).ok
    files.put(own.parent / "labels/a.npy", _npy(np.full((6, 8), 2)))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(EnvironmentFault) as caught:
        _prepare(own, tmp_path)
    assert str(caught.value) == (
        f"{own}: package {PACKAGE} reads label_format npy, but is not installed; install it, or "
        "use the labels as they were prepared by the name 'own'"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    plugin()
    assert _prepare(own, tmp_path).read == 1
    (result,) = udaseg.verify_data("own", root=root)
    assert (result.ok, result.missing_package) == (True, None)


def test_verify_says_which_package_is_missing(plugin, own, tmp_path):
    plugin()
    _prepare(own, tmp_path)
    plugin(None)
    output = command("prepare", "own", "--verify", "--root", tmp_path / "data", cwd=tmp_path)
    assert output.stdout.splitlines()[1] == (
        f"  new labels need package {PACKAGE}, which is not installed"
    )
    files.put(own.parent / "labels/a.npy", b"else")
    command("prepare", own, "--root", tmp_path / "data", cwd=tmp_path, expect=5)
    output = command(
        "prepare", "own", "--verify", "--root", tmp_path / "data", cwd=tmp_path, expect=3
    )
    assert output.stderr.splitlines()[-1] == (
        f"  this needs package {PACKAGE}, which is not installed"
    )


def test_labels_are_read_again_when_the_code_of_the_package_changes(plugin, own, tmp_path):
    plugin()
    del sys.modules["npy_labels"]
    code = "import io, numpy\n\ndef read(path, data):\n    return numpy.load(io.BytesIO(data))"
    module = tmp_path / "site" / "npy_labels.py"
    module.write_text(code, encoding="utf-8")
    importlib.invalidate_caches()
    _prepare(own, tmp_path)
    assert _prepare(own, tmp_path).unchanged
    module.write_text(code + " * 0", encoding="utf-8")
    assert _prepare(own, tmp_path).read == 3


def test_labels_are_read_again_when_another_package_has_the_format(plugin, own, tmp_path):
    plugin()
    _prepare(own, tmp_path)
    plugin(package="another-package")
    report = _prepare(own, tmp_path)
    assert (report.unchanged, report.read) == (False, 3)
    assert read_manifest(report.folder).label_reader[:2] == ("npy", "another-package")


def test_the_manifest_of_a_built_in_format_has_no_field_for_it(tmp_path):
    files.put(tmp_path / "images/a.png", files.image_png())
    files.put(tmp_path / "labels/a.png", files.gray_png(np.zeros((6, 8), int)))
    text = "name: own\nimages: images/*.png\nlabels: labels/*.png\nclasses: [a]\n"
    (report,) = udaseg.prepare(files.dataset_yaml(tmp_path, text), root=tmp_path / "data")
    head = json.loads(Path(report.folder, "manifest.jsonl").read_text().splitlines()[0])
    assert list(head) == ["format", "image_root", "meaning", "files", "pairs"]
    assert read_manifest(report.folder).label_reader is None
