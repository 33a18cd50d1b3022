"""`prepare`, `verify_data` and `doctor` for Python users: objects, and nothing on stdout."""

import errno
from pathlib import Path

import numpy as np
import pytest

import udaseg
from tests.support import files, sick
from udaseg.data.files import images as images_file
from udaseg.data.toyland.writer import write
from udaseg.errors import DataError, EnvironmentFault, UsageError


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path, capsys):
    """Use an empty working folder; at the end, nothing may have been printed."""
    monkeypatch.chdir(tmp_path)
    yield
    assert capsys.readouterr().out == ""


def _own(folder, name="own"):
    for number, key in enumerate("abc"):
        files.put(folder / f"images/{key}.png", files.image_png(6, 8, number))
        files.put(folder / f"labels/{key}.png", files.gray_png(np.full((6, 8), number % 2)))
    text = "images: images/*.png\nlabels: labels/*.png\nclasses: [road, sky, car]\n"
    return files.dataset_yaml(
        folder, f"name: {name}\n{text}splits: {{train: ['[ab]'], val: [c]}}\n"
    )


def test_prepare_takes_a_name_a_path_or_a_list(tmp_path):
    yaml = _own(tmp_path / "mine")
    for names in (str(yaml), yaml, [str(yaml)], (yaml,), [yaml, str(yaml)]):
        (report,) = udaseg.prepare(names)
        assert (report.name, report.folder) == ("own", Path("data/prepared/own"))
    reports = udaseg.prepare([yaml, _own(tmp_path / "other", "other")], root=str(tmp_path / "b"))
    assert [report.name for report in reports] == ["own", "other"]
    assert udaseg.prepare([]) == []


def test_a_report_tells_what_was_prepared(tmp_path):
    yaml = _own(tmp_path / "mine")
    files.put(tmp_path / "mine/labels/b.png", files.gray_png(np.ones((4, 4), int)))
    (tmp_path / "mine/labels/d.png").write_bytes(files.gray_png(np.ones((6, 8), int)))
    options = udaseg.PrepareOptions(max_bad=1, cache=udaseg.CacheOptions((3, 4)))
    (report,) = udaseg.prepare(yaml, options=options)
    assert report.counts == {"train": 1, "val": 1}
    assert report.classes == ("road", "sky", "car")
    assert report.class_shares == {"road": 1.0, "sky": 0.0, "car": 0.0}
    assert [len(lines) for lines in (report.bad, report.excluded)] == [1, 1]
    assert (report.unchanged, report.check_only, report.read) == (False, False, 3)
    assert (report.cache.images, report.cache.written) == (1, 1)
    assert report.cache.speedup > 0
    (again,) = udaseg.prepare(yaml, options=options)
    assert again.unchanged
    assert (again.counts, again.bad, again.excluded) == (
        report.counts,
        report.bad,
        report.excluded,
    )
    assert again.cache.written == 0


def test_an_unlabelled_set_has_no_classes(tmp_path):
    files.put(tmp_path / "mine/images/a.png", files.image_png())
    yaml = files.dataset_yaml(tmp_path / "mine", "name: own\nimages: images/*.png\n")
    (report,) = udaseg.prepare(yaml)
    assert (report.classes, report.class_shares) == ((), {})
    assert report.unlabelled == ("train",)


def test_to_check_writes_nothing(tmp_path):
    yaml = _own(tmp_path / "mine")
    (report,) = udaseg.prepare(yaml, options=udaseg.PrepareOptions(check_only=True))
    assert report.check_only
    assert not Path("data").exists()
    both = udaseg.PrepareOptions(check_only=True, cache=udaseg.CacheOptions((3, 4)))
    with pytest.raises(UsageError, match="writes nothing"):
        udaseg.prepare(yaml, options=both)


def test_toyland_is_rendered_and_means_two_sets(monkeypatch):
    def small(folder, *, seed, size, workers, on_progress):
        counts = {"source/train": 1, "source/val": 1, "target/train": 1, "target/val": 1}
        write(folder, seed=seed, size=size, counts=counts, on_progress=on_progress)

    monkeypatch.setattr("udaseg.data.toyland.writer.write", small)
    options = udaseg.PrepareOptions(size=(64, 96), seed=3)
    reports = udaseg.prepare("toyland", root="data", options=options)
    assert [report.name for report in reports] == ["toyland", "toyland-target"]
    assert reports[0].dataset.split("train")[0].height == 64


def test_a_set_that_fails_stops_no_other_and_the_error_has_their_reports(tmp_path):
    with pytest.raises(udaseg.SomeDataFailed) as caught:
        udaseg.prepare(["gta5", _own(tmp_path / "mine"), "cityscapes"])
    error = caught.value
    assert isinstance(error, DataError)
    assert error.exit_code == 3
    assert [report.name for report in error.finished] == ["own"]
    for name in ("gta5", "cityscapes"):
        assert f"{name}: not found below data" in str(error)
    with pytest.raises(udaseg.SomeDataFailed) as caught:
        udaseg.verify_data(["gta5", "own"])
    assert [result.name for result in caught.value.finished] == ["own"]
    assert "gta5: not prepared below data" in str(caught.value)


def test_a_fault_of_the_machine_stops_all(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(images_file, "write_atomic", full)
    with pytest.raises(EnvironmentFault, match="the disk is full: about"):
        udaseg.prepare([_own(tmp_path / "mine"), "gta5"])


def test_verification_is_a_result_not_an_error(tmp_path):
    yaml = _own(tmp_path / "mine")
    udaseg.prepare(yaml)
    (result,) = udaseg.verify_data("own")
    assert (result.ok, result.files, result.changed, result.missing) == (True, 11, [], [])
    (tmp_path / "mine/images/a.png").write_bytes(files.image_png(6, 8, 9))
    (tmp_path / "mine/images/b.png").unlink()
    (result,) = udaseg.verify_data(yaml)
    assert not result.ok
    assert [line.split(": ")[0] for line in result.changed] == [str(tmp_path / "mine/images/a.png")]
    assert result.missing == [str(tmp_path / "mine/images/b.png")]
    assert result.argument == str(yaml)
    assert result.missing_package is None


def test_a_diagnosis_has_its_findings_and_none_is_an_error(tmp_path):
    sick.clean(tmp_path / "set", train=12)
    assert udaseg.doctor(tmp_path / "set/own.yaml").ok
    path = tmp_path / "set/train/labels/003.png"
    path.write_bytes(b"")
    diagnosis = udaseg.doctor("set/own.yaml", splits="train")
    assert not diagnosis.ok
    (error,) = diagnosis.errors
    assert (error.code, error.severity, error.files) == ("empty-file", "error", (path.resolve(),))
    assert error.fix == "copy it again from the original"
    assert list(diagnosis.sets[0].splits) == ["train"]
    pair = udaseg.doctor("set/own.yaml", target=tmp_path / "set/val/images", workers=1)
    assert [facts.role for facts in pair.sets] == ["source", "target"]


def test_no_data_is_an_error(tmp_path):
    sick.clean(tmp_path / "set", train=12)
    for words, how in (("nothing", {}), ("set/own.yaml", {"splits": ["tset"]})):
        with pytest.raises(DataError):
            udaseg.doctor(words, **how)
