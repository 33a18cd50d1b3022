"""Pseudo-labels of another tool: a folder of PNGs in place of the student's own labels."""

import json
import shutil

import cv2
import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.support.toy import TINY
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.open import open_dataset

STAGE = (
    "method.stages=[{{name: distil, share: 1, lr_mult: 1, schedule_stop: 1, "
    "objective: {{kind: self_distillation}}, pseudo_labels: {{folder: {folder}{more}}}}}]"
)


@pytest.fixture
def given(root, tmp_path):
    """Write stripes of two classes for all images but the first; return the folder."""
    folder = tmp_path / "theirs"
    for sample in open_dataset("toyland-target", root=root).split("train")[1:]:
        labels = np.full((64, 128), 255, np.uint8)
        labels[10:30], labels[30:60] = 3, 7
        path = folder / "deep" / f"{sample.image.rpartition('/')[2].rpartition('.')[0]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), labels)
    return folder


def adapt(root, folder, out, *words, more="", expect=0):
    stage = STAGE.format(folder=folder, more=more)
    return udaseg(
        *("adapt", "toyland/spcl", "--root", root, "--out", out, "--steps", 2, *TINY, stage),
        *("validation.data=null", "machine.log_every=1", "machine.checkpoint_every=1", *words),
        cwd=out.parent,
        expect=expect,
    )


def test_a_run_can_begin_with_them_and_reads_no_source_image(root, given, tmp_path, monkeypatch):
    read_image = PreparedDataset.read_image

    def not_of_the_source(dataset, sample):
        assert dataset.name == "toyland-target"
        return read_image(dataset, sample)

    monkeypatch.setattr(PreparedDataset, "read_image", not_of_the_source)
    before = {path: path.read_bytes() for path in given.rglob("*.png")}
    out = tmp_path / "run"
    said = adapt(root, given, out).stderr
    assert "% of the target pixels have a pseudo-label" in said
    assert "warning: without pseudo-labels: road, sidewalk, building, pole," in " ".join(
        said.split()
    )
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before
    folder = out / "stages" / "1-distil"
    first, *others = open_dataset("toyland-target", root=root).split("train")
    for sample in (first, *others):
        path = folder / "pseudo_labels" / f"{sample.image}.png"
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(labels)) == ({255} if sample is first else {3, 7, 255})
    kept = json.loads((folder / "pseudo_labels.json").read_text())["classes"]
    pixels = [entry["kept_pixels"] for entry in kept.values()]
    assert pixels == [128 * len(others) * {3: 20, 7: 30}.get(number, 0) for number in range(13)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["losses"]) for line in lines] == [{"total", "target"}] * 2
    assert lines[0]["losses"]["target"] > 0


@pytest.mark.slow
def test_a_run_goes_on_without_the_folder(root, given, tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    adapt(root, given, out)
    shutil.copytree(out, again)
    for path in (again / "checkpoints").glob("step-000002*"):
        path.unlink()
    shutil.rmtree(given)  # the run has its own copy
    udaseg("adapt", "--resume", again, "--root", root, cwd=tmp_path)
    assert_same(tensors(again), tensors(out))


def test_what_is_not_such_a_folder_is_refused_before_the_run_begins(root, given, tmp_path):
    out = tmp_path / "run"
    target = open_dataset("toyland-target", root=root)
    (tmp_path / "empty").mkdir()
    for folder, expected in (
        (tmp_path / "nowhere", "no such folder of pseudo-labels"),
        (tmp_path / "empty", "no PNG has the name of an image"),
        (target.folder, "is a label of toyland-target itself"),
    ):
        said = adapt(root, folder, out, expect=3).stderr
        assert expected in " ".join(said.split())
        assert not out.exists()
    said = adapt(root, given, out, more=", quantile: 0.5", expect=2).stderr
    assert "pseudo_labels.quantile: must be left out" in said


def test_an_id_or_a_size_that_does_not_fit_is_named_with_its_file(root, given, tmp_path):
    path = next(given.rglob("*.png"))
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[0, 0] = 13
    cv2.imwrite(str(path), labels)
    said = adapt(root, given, tmp_path / "ids", expect=3).stderr
    assert f"{path.name}: holds 13, which are no train ids" in said
    assert not (tmp_path / "ids").exists()  # the stage of the labels may begin days later
    cv2.imwrite(str(path), labels[:, :64])
    said = " ".join(adapt(root, given, tmp_path / "size", expect=3).stderr.split())
    assert "has size 64x64, but the image has 128x64" in said


def test_labels_of_the_student_need_their_threshold_and_an_earlier_stage(root, tmp_path):
    stage = STAGE.format(folder="null", more="")
    said = udaseg(
        *("adapt", "toyland/spcl", "--root", root, "--dry-run", stage), cwd=tmp_path, expect=2
    ).stderr
    for expected in ("must not come first", "quantile: must be given, or else a folder of labels"):
        assert expected in said
