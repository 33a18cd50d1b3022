"""`--dry-run` needs no prepared data and no weights, writes nothing, and can time a step."""

import logging

import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.support import files
from tests.support.toy import TINY
from udaseg.data.datasets.catalog import builtin_names, read_builtin
from udaseg.data.prepare.planned import SIZES, is_stand_in, planned_dataset
from udaseg.training import plan


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def own(tmp_path):
    """Return the YAML of two labelled images."""
    for number in range(2):
        files.put(tmp_path / f"set/images/{number}.png", files.image_png(64, 96, number))
        labels = files.gray_png(np.repeat([[0, 1]], 48, axis=1).repeat(64, axis=0))
        files.put(tmp_path / f"set/labels/{number}.png", labels)
    return files.dataset_yaml(
        tmp_path / "set",
        "name: own\nimages: images/*.png\nlabels: labels/*.png\nsplits: {train: 1.0}\n"
        "classes: [{name: road, ids: [0]}, {name: sky, ids: [1]}]\n",
    )


def test_built_in_data_are_stood_in_for_by_what_is_published(tmp_path):
    assert set(SIZES) == set(builtin_names())
    gta5 = planned_dataset("gta5", root=tmp_path)
    assert is_stand_in(gta5)
    assert {name: len(samples) for name, samples in gta5.splits.items()} == {"train": 24966}
    assert (gta5.splits["train"][0].height, gta5.splits["train"][0].width) == (1052, 1914)
    for name in builtin_names():
        expected = dict(read_builtin(name).expected_counts)
        splits = planned_dataset(name, root=tmp_path).splits
        assert splits
        assert expected in ({}, {split: len(samples) for split, samples in splits.items()})


def test_own_data_are_read_and_nothing_is_written(own, tmp_path):
    before = tree(tmp_path)
    dataset = planned_dataset(str(own), root=tmp_path / "data")
    assert not is_stand_in(dataset)
    assert len(dataset.split("train")) == 2
    assert tree(tmp_path) == before
    assert planned_dataset("photos", root=tmp_path) is None  # a folder, opened as it is


def test_a_plan_needs_no_data_writes_nothing_and_times_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_timed_seconds", lambda setup, step: 1.5)
    output = udaseg(
        *("adapt", "toyland/dacs", "--dry-run", "--time", "--steps", 100, *TINY), cwd=tmp_path
    )
    assert "toyland: 400 images, 13 classes" in output.stderr
    assert "assumed  toyland, toyland-target: not prepared" in output.stderr
    assert "1.5 s a step on cpu, 0:02:30 for 100 steps" in output.stderr
    assert tree(tmp_path) == []


def test_the_time_of_a_run_is_that_of_its_warm_up_and_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_timed_seconds", lambda setup, step: 2.0 if step else 0.5)
    words = ("adapt", "toyland/foundation", "--dry-run", "--time", "--steps", 100, *TINY)
    err = udaseg(*words, "method.warm_up=0.5", "method.teacher.scale=1.5", cwd=tmp_path).stderr
    assert "2 s a step on cpu (0.5 s in the warm-up), 0:02:05 for 100 steps" in err
    assert "by the teacher, of target images at 1.5 times their size" in err
    assert "none: the network is no plain ViT (method.masking.weight: null)" in err
    err = udaseg(*words, "method.warm_up=1", "method.masking.weight=1", cwd=tmp_path).stderr
    assert "no plain ViT" not in err
    assert "2 s a step on cpu, 0:03:20 for 100 steps" in err  # all steps are of the warm-up


@pytest.mark.slow
def test_a_timed_step_is_a_whole_step(tmp_path, monkeypatch):
    ran = []
    real = plan.compute_gradients
    monkeypatch.setattr(plan, "compute_gradients", lambda *given: ran.append(real(*given)))
    udaseg("adapt", "toyland/rccr", "--dry-run", "--time", *TINY, cwd=tmp_path)
    assert len(ran) == 3
    assert {"source", "mixed", "regional"} <= set(ran[0].parts)


def test_a_run_that_does_not_fit_in_memory_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plan, "_memory_of_machine", lambda device: 2**20)
    with caplog.at_level(logging.WARNING, "udaseg"):
        output = udaseg("train", "toyland/source_only", "--dry-run", *TINY, cwd=tmp_path)
    assert "of 1.0 MiB on cpu" in output.stderr
    assert "this needs more memory than this machine has; use smaller crops" in output.stderr


def test_a_crop_that_is_larger_than_the_resized_images_is_warned_of(own, tmp_path):
    tiny = [word for word in TINY if ".resize=" not in word]
    words = ("adapt", "toyland/rccr", "--dry-run", "--source", own, "--target", own, *tiny)
    err = udaseg(*words, "source.resize=null", "target.resize=null", cwd=tmp_path).stderr
    assert "smaller than" not in err
    err = udaseg(*words, "source.resize=[32, 48]", "target.resize=[48, 96]", cwd=tmp_path).stderr
    assert (
        "2 of 2 source images are smaller than source.crop=[64, 64] after source.resize (the first "
        "is 48x32: 62.50 % of its crop is padding); choose a crop of at most "
        "'source.crop=[32, 48]', or a larger source.resize"
    ) in err
    assert "2 of 2 target images are smaller than target.crop=[64, 64] after target.resize" in err
    assert "(the first is 96x48: it is enlarged)" in err
    assert "'target.crop=[48, 64]'" in err
    words = (*words, "source.resize=[32, 48]", "target.resize=[48, 96]")
    err = udaseg(*words, "source.scale=[1, 2]", "target.scale=[0.5, 1.4]", cwd=tmp_path).stderr
    assert "smaller than" not in err
    err = udaseg(*words, "source.scale=[0.5, 1]", "target.scale=[0.5, 1]", cwd=tmp_path).stderr
    assert err.count("smaller than") == 2
