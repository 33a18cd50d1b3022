"""Toyland: two domains with the same structure, different appearance and reproducible scenes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.toyland.city import Domain
from udaseg.data.toyland.render import render
from udaseg.data.toyland.writer import make_toyland, write
from udaseg.errors import DataError

COUNTS = {"source/train": 2, "source/val": 1, "target/train": 2, "target/val": 1}
SMALL = (32, 64)
CLASSES = builtin_label_table("toyland13").classes
DOMAINS: tuple[Domain, ...] = ("source", "target")


@pytest.fixture(scope="module")
def many():
    return {
        domain: [render(domain, seed=0, split="val", index=i, size=(64, 128)) for i in range(60)]
        for domain in DOMAINS
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_arguments_give_the_same_bytes(domain):
    first = render(domain, seed=3, split="train", index=7)
    render(domain, seed=4, split="train", index=1)  # earlier calls must not matter
    again = render(domain, seed=3, split="train", index=7)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "val"}, {"index": 1}])
@pytest.mark.parametrize("domain", DOMAINS)
def test_seed_split_and_index_each_give_another_street(domain, change):
    plain = {"seed": 0, "split": "train", "index": 0, "size": SMALL}
    one, other = render(domain, **plain), render(domain, **{**plain, **change})
    assert (one[1] != other[1]).mean() > 0.02
    assert (one[0] != other[0]).mean() > 0.5


@pytest.mark.parametrize("size", [(128, 256), (64, 160), (256, 512)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_image_and_label_have_the_size_and_the_types_asked_for(domain, size):
    image, label = render(domain, seed=0, split="train", index=0, size=size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (label.shape, label.dtype) == (size, np.uint8)


@pytest.mark.slow
def test_labels_hold_only_classes_and_the_ignored_value(many):
    values = set()
    for _, label in many["source"] + many["target"]:
        values |= set(np.unique(label).tolist())
    assert values == {*range(len(CLASSES)), IGNORE}


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_in_at_least_15_percent_of_the_images(many, domain):
    present = np.array([[(y == k).any() for k in range(len(CLASSES))] for _, y in many[domain]])
    rates = dict(zip(CLASSES.names, present.mean(axis=0).tolist(), strict=True))
    assert min(rates.values()) >= 0.15, rates


@pytest.mark.parametrize("domain", DOMAINS)
def test_small_things_are_rare_and_the_road_is_common(many, domain):
    labels = np.stack([label for _, label in many[domain]])
    share = {name: (labels == k).mean() for k, name in enumerate(CLASSES.names)}
    assert share["road"] > 0.2
    for name in ("traffic light", "traffic sign", "person", "bicycle"):
        assert 0.001 < share[name] < 0.03, name
    assert (labels == IGNORE).mean() < 0.1


def test_the_target_is_darker_duller_and_noisier_than_the_source(many):
    def looks(domain):
        pixels = np.stack([image for image, _ in many[domain]]).astype(np.float32)
        saturation = pixels.max(-1) - pixels.min(-1)
        return pixels.mean(), saturation.mean(), np.abs(np.diff(pixels, axis=2)).mean()

    source, target = looks("source"), looks("target")
    assert target[0] < source[0] - 10
    assert target[1] < source[1]
    assert abs(target[2] - source[2]) > 0.1


def test_the_two_cities_agree_where_things_are(many):
    rows = {}
    for domain in DOMAINS:
        labels = np.stack([label for _, label in many[domain]])
        rows[domain] = [np.nonzero(labels == k)[1].mean() / labels.shape[1] for k in range(13)]
    assert np.corrcoef(rows["source"], rows["target"])[0, 1] > 0.9


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_larger_image_shows_the_same_street(domain):
    small = render(domain, seed=0, split="train", index=5)
    large = render(domain, seed=0, split="train", index=5, size=(256, 512))
    halved = large[1][::2, ::2]
    assert (halved == small[1]).mean() > 0.9
    shrunk = cv2.resize(large[0], (256, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(float) - small[0]).mean() < 15


def test_an_unknown_domain_and_a_tiny_size_are_refused():
    with pytest.raises(ValueError, match="'source' or 'target'"):
        render("moon", seed=0, split="train", index=0)
    with pytest.raises(ValueError, match="at least"):
        render("source", seed=0, split="train", index=0, size=(8, 8))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toyland"
    seen = []
    write(folder, seed=2, size=SMALL, counts=COUNTS, on_progress=lambda *at: seen.append(at))
    return folder, seen


def _tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_folder_has_target_labels_apart_and_none_for_target_training(written):
    folder, seen = written
    assert _tree(folder) == [
        "source/train/images/00000.png",
        "source/train/images/00001.png",
        "source/train/labels/00000.png",
        "source/train/labels/00001.png",
        "source/val/images/00000.png",
        "source/val/labels/00000.png",
        "target/train/images/00000.png",
        "target/train/images/00001.png",
        "target/val/images/00000.png",
        "target_labels/val/00000.png",
        "toyland.json",
    ]
    assert seen == [(done, 6) for done in range(1, 7)]
    assert [p.name for p in folder.parent.iterdir()] == ["toyland"]


def test_the_files_hold_what_render_returns(written):
    folder, _ = written
    for domain, labels in (("source", "source/val/labels"), ("target", "target_labels/val")):
        image, label = render(domain, seed=2, split="val", index=0, size=SMALL)
        stored = cv2.imread(str(folder / domain / "val/images/00000.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored[..., ::-1], image)
        stored = cv2.imread(str(folder / labels / "00000.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, label)


def test_writing_again_changes_nothing(written):
    folder, _ = written
    before = {name: (folder / name).stat().st_mtime_ns for name in _tree(folder)}
    write(folder, seed=2, size=SMALL, counts=COUNTS)
    assert {name: (folder / name).stat().st_mtime_ns for name in _tree(folder)} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 9}, "seed is 2, requested 9"),
        ({"size": (64, 128)}, r"size is \[32, 64\], requested \[64, 128\]"),
        ({"counts": {**COUNTS, "target/val": 3}}, "counts is"),
    ],
)
def test_other_settings_are_refused_with_what_differs_and_what_to_do(written, change, words):
    folder, _ = written
    with pytest.raises(DataError, match=words) as caught:
        write(folder, **{"seed": 2, "size": SMALL, "counts": COUNTS, **change})
    assert "delete the folder" in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not a toyland folder"):
        write(tmp_path, size=SMALL, counts=COUNTS)
    assert _tree(tmp_path) == ["thesis.txt"]


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "toyland.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"toyland\.json: not readable"):
        write(tmp_path, size=SMALL, counts=COUNTS)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "toyland", size=SMALL, counts=COUNTS, on_progress=_stop)
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits_and_negative_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="target/test"):
        write(tmp_path / "toyland", counts={"target/test": 1})
    with pytest.raises(ValueError, match="negative"):
        write(tmp_path / "toyland", counts={"target/val": -1})


@pytest.mark.slow
def test_two_workers_write_what_one_writes(written, tmp_path):
    folder, _ = written
    write(tmp_path / "toyland", seed=2, size=SMALL, counts=COUNTS, workers=2)
    assert _tree(tmp_path / "toyland") == _tree(folder)
    for name in _tree(folder):
        assert (tmp_path / "toyland" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((folder / "toyland.json").read_text())["seed"] == 2


@pytest.mark.slow
def test_a_killed_writer_takes_its_workers_along_and_the_next_one_its_remains(tmp_path):
    code = "import sys, pathlib; from udaseg.data.toyland.writer import make_toyland as make; "
    code += "make(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    _wait_until(lambda: len(list(tmp_path.glob(".toyland-*/*/train/images/*.png"))) > 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.wait()
    _wait_until(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))
    with pytest.raises(KeyboardInterrupt):
        make_toyland(tmp_path, on_progress=_stop)
    assert [path.name for path in tmp_path.iterdir()] == [".toyland.lock"]


def _stop(done, total):
    raise KeyboardInterrupt


def _wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
