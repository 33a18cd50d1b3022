"""A run holds the data that it opened: changes under it or before a resume are never mixed in."""

import hashlib
import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch

from tests.cli.running import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.compare_commits import leaves
from tests.support import files
from tests.support.own import SIZE as SMALL_SIZE
from tests.support.own import own_set
from tests.support.toy import SIZE, TINY, toy_root
from udaseg.data.loading.batches import TrainingBatches
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.training.callbacks.metrics import Metrics

SMALL = [*TINY, "model.head=deeplab_v2", "machine.log_every=1", "validation.data=null"]


@pytest.fixture
def home(tmp_path):
    toy_root(tmp_path / "data")
    shutil.copytree(tmp_path / "data/toyland/target/train/images", tmp_path / "photos")
    return tmp_path


def _start(home, *words, steps=3, method="dacs", expect=0):
    base = ["adapt", f"toyland/{method}", "--root", "data", "--out", "run", "--steps", steps]
    own = {str(word).partition("=")[0] for word in words}
    small = [word for word in SMALL if word.partition("=")[0] not in own]
    return udaseg(*base, *small, *words, cwd=home, expect=expect)


def _resume(home, *words, expect=0):
    return udaseg("adapt", "--resume", "run", "--root", "data", *words, cwd=home, expect=expect)


def _invert(*paths):
    for path in paths:
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))


def _images(home, domain="source"):
    return sorted((home / f"data/toyland/{domain}/train/images").iterdir())


def _at_step(monkeypatch, number, act):
    """Call `act` once, before the batch of a step is made in this process."""
    make, todo = TrainingBatches.__getitem__, [act]

    def changed(self, step):
        if step >= number and todo:
            todo.pop()()
        return make(self, step)

    monkeypatch.setattr(TrainingBatches, "__getitem__", changed)


def _steps(home):
    lines = (home / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def _words(output):
    return " ".join(output.stderr.split())


def _stopped_after_two(home, *words):
    """Start a run of four steps, and take its last two back."""
    _start(home, "machine.checkpoint_every=2", *words, steps=4)
    for path in (home / "run/checkpoints").glob("step-000004.*"):
        path.unlink()


@pytest.mark.parametrize("again", [True, False], ids=["prepared again", "not prepared again"])
def test_no_step_of_a_resumed_run_uses_changed_images(home, again):
    _stopped_after_two(home)
    before = tensors(home / "run")
    _invert(*_images(home))
    if again:
        prepare_dataset("toyland", root=home / "data")
    said = _words(_resume(home, expect=3))
    if again:
        assert "step-000002.pt: the files of source have changed" in said
        assert "start a new run with --init" in said
    else:
        assert "is not the file that it was when the data set was prepared" in said
        assert "and step 2 is saved" in said
    assert_same(tensors(home / "run"), before)


def test_a_set_that_changed_since_it_was_prepared_is_not_trained_on(home):
    _invert(*_images(home))
    said = _words(_start(home, expect=3))
    assert "is not the file that it was when the data set was prepared" in said
    assert "prepare the data again, then continue with --resume run" in said
    assert not (home / "run/checkpoints").exists()
    prepare_dataset("toyland", root=home / "data")
    _resume(home)
    assert _steps(home) == [1, 2, 3]


@pytest.mark.slow
def test_what_is_restored_or_only_copied_goes_on_as_if_nothing_had_happened(home):
    _start(home, "machine.checkpoint_every=2", steps=4)
    whole = tensors(home / "run")
    for path in (home / "run/checkpoints").glob("step-000004.*"):
        path.unlink()
    for path in _images(home):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)  # another time
    prepare_dataset("toyland", root=home / "data")
    _resume(home)
    assert_same(tensors(home / "run"), whole)


@pytest.mark.parametrize(
    "change",
    ["target", *(pytest.param(each, marks=pytest.mark.slow) for each in ("photos", "labels"))],
)
def test_every_file_that_a_run_reads_counts(home, change):
    words = ["--target", "photos"] if change == "photos" else []
    _stopped_after_two(home, *words)
    if change == "photos":
        path = home / "photos/00003.png"
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image[0, 0] ^= 1
        cv2.imwrite(str(path), image)
    elif change == "target":
        _invert(_images(home, "target")[4])
        prepare_dataset("toyland-target", root=home / "data")
    else:
        path = home / "data/toyland/source/train/labels/00005.png"
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        path.write_bytes(files.gray_png(np.where(labels == labels[0, 0], labels[-1, 0], labels)))
        prepare_dataset("toyland", root=home / "data")
    domain = "source" if change == "labels" else "target"
    said = _words(_resume(home, expect=3))
    assert f"the files of {domain} have changed" in said


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_is_compared_by_what_it_has(home):
    _stopped_after_two(home)
    path = home / "run/checkpoints/step-000002.pt"
    payload = torch.load(path, weights_only=True)
    assert set(payload["files"]) == {"source", "source_content", "target", "target_content"}
    payload["files"] = {name: payload["files"][name] for name in ("source", "target")}
    torch.save(payload, path)
    path.with_suffix(".json").write_text(_manifest(path))
    _invert(_images(home)[0])
    prepare_dataset("toyland", root=home / "data")
    _resume(home)
    newest = torch.load(home / "run/checkpoints/step-000004.pt", weights_only=True)
    assert set(newest["files"]) == {"source", "source_content", "target", "target_content"}


def _manifest(path):
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    facts = {"format": 1, "file": path.name, "size": len(data), "sha256": digest, "step": 2}
    return json.dumps(facts)


def test_files_that_are_gone_are_told_before_a_run_starts(home):
    images = _images(home)
    images[0].unlink()
    said = _words(_start(home, "--target", "photos", steps=1, expect=3))
    assert f"toyland: 1 of {2 * len(images)} files are gone, such as" in said
    assert "restore them, or prepare the data again" in said


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ("source", "fail"),
        *(
            pytest.param(change, "skip", marks=pytest.mark.slow)
            for change in ("source", "photos", "labels")
        ),
        ("gone", "skip"),
    ],
)
def test_a_file_that_changes_under_a_run_ends_it_with_its_last_step_saved(
    home, monkeypatch, change, bad
):
    def act():
        if change == "labels":
            for path in (home / "data/prepared/toyland/labels/train").iterdir():
                path.unlink()  # as `prepare` does, which makes a new folder
                path.write_bytes(files.gray_png(np.zeros(SIZE, int)))
        elif change == "gone":
            shutil.rmtree(home / "data/toyland/source/train/images")
        else:
            _invert(*(_images(home) if change == "source" else (home / "photos").iterdir()))

    _at_step(monkeypatch, 2, act)
    words = ["--target", "photos", f"machine.on_bad_sample={bad}"]
    said = _words(_start(home, *words, steps=6, expect=3))
    assert "it was there when" in said if change == "gone" else "is not the file that" in said
    assert "and step 2 is saved. Restore the file and continue with --resume run" in said
    status = json.loads((home / "run/status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 3)
    assert _steps(home) == [1, 2]
    assert torch.load(home / "run/checkpoints/step-000002.pt", weights_only=True)["step"] == 2


@pytest.mark.slow
def test_a_restored_run_ends_where_the_undisturbed_one_ends(home, monkeypatch):
    _start(home, steps=4)
    (home / "run").rename(home / "whole")
    (home / "kept").mkdir()
    for path in _images(home):
        shutil.copy2(path, home / "kept")
    _at_step(monkeypatch, 2, lambda: _invert(*_images(home)))
    _start(home, steps=4, expect=3)
    for path in _images(home):
        shutil.copyfile(home / "kept" / path.name, path)
    _resume(home)
    assert_same(tensors(home / "run"), tensors(home / "whole"))
    assert _steps(home) == [1, 2, 3, 4]


def test_another_set_of_the_name_is_refused_under_a_run_which_goes_on(home, monkeypatch):
    mine, others = own_set(home / "A"), own_set(home / "B")
    for path in (home / "B/labels").iterdir():
        path.write_bytes(files.gray_png(np.ones((6, 8), int)))
    words = ["--source", mine, "source.sampling=uniform"]
    _start(home, *words)
    (home / "run").rename(home / "whole")
    refused = []

    def act():
        command = ["prepare", others, "--root", "data"]
        refused.append(_words(udaseg(*command, cwd=home, expect=3)))

    _at_step(monkeypatch, 1, act)
    _start(home, *words)
    assert f"the name 'own' belongs to the data set of {mine}" in refused[0]
    assert_same(tensors(home / "run"), tensors(home / "whole"))


def test_a_set_prepared_again_on_purpose_ends_the_run_that_reads_it(home, monkeypatch):
    """Its labels keep their names and times if only the order of the classes changes."""
    yaml, label = own_set(home / "A"), home / "data/prepared/own/labels/train/0.png"
    for path in (home / "A/labels").iterdir():
        path.write_bytes(files.gray_png(np.arange(48).reshape(SMALL_SIZE) % 2))
    times, text = [], yaml.read_text()

    def order(first, second):
        classes = ", ".join(
            f"{{name: {name}, ids: [{'ab'.index(name)}]}}" for name in (first, second)
        )
        yaml.write_text(text.replace("[a, b, c]", f"[{classes}]"))

    order("a", "b")

    def act():
        times.append(label.stat().st_mtime_ns)
        order("b", "a")
        prepare_dataset(str(yaml), root=home / "data")
        times.append(label.stat().st_mtime_ns)

    _at_step(monkeypatch, 2, act)
    words = ["--source", yaml, "source.sampling=uniform"]
    said = _words(_start(home, *words, steps=6, expect=3))
    assert "prepared/own/labels/train/" in said
    assert "is not the file that it was when the data set was prepared" in said
    assert "and step 2 is saved" in said
    before, after = times
    assert before == after


def test_validation_images_that_change_are_not_scored(home, monkeypatch):
    def act():
        _invert(*(home / "data/toyland/target/val/images").iterdir())

    _at_step(monkeypatch, 2, act)
    said = _words(_start(home, "validation.data=toyland-target", steps=3, expect=3))
    assert "target/val/images/00000.png: is not the file" in said
    assert "and step 3 is saved" in said
    assert not (home / "run/eval").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "raw"])
def test_a_cache_that_is_written_again_under_a_run_is_no_longer_read(home, monkeypatch, form):
    """The original files are read instead, and these count."""
    if form == "raw":
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    resize = "source.resize=[48, 96]"
    _start(home, resize, steps=4)
    (home / "run").rename(home / "whole")

    def cache():
        write_cache(prepare_dataset("toyland", root=home / "data").dataset, (48, 96), form)

    cache()
    cached = sorted((home / "data/prepared/toyland/cache-96x48").rglob(f"*.{form}"))
    assert len(cached) == 12

    def touch():
        for path in cached:
            path.write_bytes(b"other")

    _at_step(monkeypatch, 2, touch)
    _start(home, resize, steps=4)
    assert "are read from" in (home / "run/train.log").read_text()
    assert_same(tensors(home / "run"), tensors(home / "whole"))
    shutil.rmtree(home / "run")
    cache()

    def change():
        _invert(*_images(home))
        cache()

    _at_step(monkeypatch, 2, change)
    said = _words(_start(home, resize, steps=6, expect=3))
    assert "is not the file that it was" in said


@pytest.mark.slow
def test_a_stage_is_not_opened_with_changed_data(home):
    """Its pseudo-labels would be made of them, and found again after they are restored."""
    often = ["machine.checkpoint_every=1", "machine.keep_checkpoints=9"]
    _start(home, *often, steps=6, method="spcl")
    kept = "step-000002"  # the last of the first stage
    for path in (home / "run/checkpoints").iterdir():
        if path.stem != kept:
            path.unlink()
    for stage in (home / "run/stages").iterdir():
        if not stage.name.startswith("1-"):
            shutil.rmtree(stage)
    assert (home / f"run/checkpoints/{kept}.pt").is_file()
    _invert(*_images(home, "target"))
    prepare_dataset("toyland-target", root=home / "data")
    said = _words(_resume(home, expect=3))
    assert "the files of target have changed" in said
    assert [path.name for path in (home / "run/stages").iterdir()] == ["1-warm_up"]


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["fail", "skip"])
def test_loader_processes_notice_it_too(home, monkeypatch, bad):
    write, todo = Metrics.on_step, [1]

    def changed(self, state):
        write(self, state)
        if todo and state.step >= 2:
            todo.pop()
            _invert(*_images(home))

    monkeypatch.setattr(Metrics, "on_step", changed)
    words = ["--workers", 2, f"machine.on_bad_sample={bad}"]
    said = _words(_start(home, *words, steps=60, expect=3))
    (step,) = (path.stem[5:] for path in (home / "run/checkpoints").glob("*.pt"))
    assert 2 <= int(step) < 60
    assert _steps(home)[-1] == int(step)
    assert f"and step {int(step)} is saved" in said


@pytest.mark.slow
def test_nothing_is_held_or_read_for_a_plan(home, monkeypatch):
    monkeypatch.setattr("udaseg.data.open.hold_now", None)
    _start(home, "--target", "photos", "--dry-run")


@pytest.mark.slow
def test_a_set_without_a_manifest_is_held_as_it_is(home):
    manifest = home / "data/prepared/toyland/manifest.jsonl"
    manifest.rename(home / "kept")
    _stopped_after_two(home)
    found = dict(leaves(torch.load(home / "run/checkpoints/step-000002.pt", weights_only=True)))
    (home / "kept").rename(manifest)
    _resume(home)
    other = dict(leaves(torch.load(home / "run/checkpoints/step-000004.pt", weights_only=True)))
    assert found["files.source_content"] == other["files.source_content"]
    assert open_dataset("toyland", root=home / "data").held == {}
