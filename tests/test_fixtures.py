"""What an earlier version wrote is read, gone on with and made again as it was.

`tests/fixtures/README.md` says what the files are.
"""

import fcntl
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.cli.running import udaseg
from tests.compare_commits import FIXTURES, MADE_IN, leaves, unpack_data
from tests.make_fixtures import (
    batch_digests,
    end_of,
    frame_digests,
    golden_losses,
    machine,
    tensors_of,
    unpack_run,
)
from udaseg.recipe.library import OWN_FOLDER, list_recipes
from udaseg.recipe.load import dump, from_dict, load, to_dict

GOLDEN = json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))
ENDS = json.loads((FIXTURES / "runs" / "ends.json").read_text(encoding="utf-8"))
SHIPPED = {entry.name: entry.path for entry in list_recipes() if entry.folder != OWN_FOLDER}
STORED = {
    f"{path.parent.name}/{path.stem}": path
    for path in sorted((FIXTURES / "recipes_resolved").glob("*/*.yaml"))
}
CLOSE = 1e-4
SAME_MACHINE = all(
    machine()[part] == GOLDEN["machine"][part] for part in ("torch", "cpu", "kernels")
)
"""Elsewhere sums are rounded otherwise. Where a gradient is only rounding, so is the weight."""

SHARES = {"confident", "top_class"}
"""Shares of pixels: on another processor a pixel may fall on the other side of a bound."""

OTHER_OPENCV = pytest.mark.skipif(
    cv2.__version__ != GOLDEN["machine"]["opencv"],
    reason=f"made with OpenCV {GOLDEN['machine']['opencv']}, here is {cv2.__version__}: "
    "drawing and scaling may round otherwise",
)
QUICK = {"toyland/rccr", "toyland/sepico"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return unpack_data(tmp_path_factory.mktemp("fixtures") / "data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the finished RCCR run; tests must leave it as it is."""
    return unpack_run("rccr", tmp_path_factory.mktemp("finished") / "rccr")


@pytest.fixture
def data_in_its_place():
    """Put the data where they were prepared: that place is part of what is unchanged or not."""
    place = Path(MADE_IN)
    lock = place.with_name(f"{place.name}.lock")
    try:
        held = lock.open("w")
    except OSError as error:
        pytest.skip(f"{lock}: {error}")
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(FIXTURES / "data", place / "data")
        for manifest in place.glob("data/prepared/*/manifest.jsonl"):
            _set_times(manifest)
        yield place / "data"
        shutil.rmtree(place, ignore_errors=True)


def _set_times(manifest):
    """Give the files of a prepared set the times that its manifest has of them."""
    head, *rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines()[:-1])
    for row in rows:
        for key, folder in (
            ("image", Path(head["image_root"])),
            ("label", Path(head["image_root"])),
            ("prepared", manifest.parent),
        ):
            if key in row:
                name, _, time_ns, _ = row[key]
                os.utime(folder / name, ns=(time_ns, time_ns))


def _tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def _assert_ends_as_stored(run, name):
    """Compare size and some values of every tensor at a run's end with the stored ones."""
    found, wanted = end_of(run), ENDS[name]
    assert found.keys() == wanted.keys()
    for tensor, end in wanted.items():
        assert found[tensor]["shape"] == end["shape"], tensor
        size = end["mean_size"]
        if SAME_MACHINE:
            room = {"rel": CLOSE, "abs": CLOSE * size + 1e-9}
            assert found[tensor]["values"] == pytest.approx(end["values"], **room), tensor
        else:
            room = {"rel": 0.2, "abs": 1e-3}
        assert found[tensor]["mean_size"] == pytest.approx(size, **room), tensor


def _assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        if not SAME_MACHINE:
            continue
        size = float(tensor.double().abs().mean()) if tensor.numel() else 0.0
        torch.testing.assert_close(
            *(found[name], tensor), rtol=CLOSE, atol=CLOSE * size + 1e-9, msg=f"{name} differs"
        )


def _steps(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def _losses(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["losses"] for line in lines]


def _assert_losses(found, wanted):
    made = f"made with {GOLDEN['machine']}, here is {machine()}"
    assert len(found) == len(wanted)
    for step, (here, stored) in enumerate(zip(found, wanted, strict=True), 1):
        assert here.keys() == stored.keys(), f"step {step}"
        for term, value in stored.items():
            room = 1e-3 if term in SHARES else 1e-7
            assert here[term] == pytest.approx(value, rel=CLOSE, abs=room), (
                f"step {step}, {term}; {made}"
            )


def test_info_tells_of_runs_of_an_earlier_version(finished, tmp_path):
    said = " ".join(udaseg("info", finished, cwd=tmp_path).stdout.split())
    assert "timm:test_efficientnet" in said
    assert "4 of 4" in said
    assert "self_training + regional" in said
    staged = unpack_run("spcl", tmp_path / "spcl")
    said = " ".join(udaseg("info", staged, cwd=tmp_path).stdout.split())
    assert "warm_up (adversarial) to 2, contrast (prototype_alignment) to 5" in said
    cut = unpack_run("sepico_interrupted", tmp_path / "sepico")
    said = " ".join(udaseg("info", cut, cwd=tmp_path).stdout.split())
    assert "2 of 4" in said


def test_verify_finds_a_whole_run_whole_and_a_damaged_one_damaged(finished, tmp_path):
    run = tmp_path / "rccr"
    shutil.copytree(finished, run)
    said = udaseg("verify", run, cwd=tmp_path)
    assert "e4bcaf6dbdeb" in said.stdout  # the digest of what is not default in the recipe
    assert "mIoU 3.30" in said.stdout
    checkpoint = run / "checkpoints" / "step-000004.pt"
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes(bytes(data))
    udaseg("verify", run, cwd=tmp_path, expect=3)


def test_eval_gives_the_stored_scores(root, finished, tmp_path):
    run = tmp_path / "rccr"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "eval")
    udaseg("eval", run, "--root", root, cwd=tmp_path)
    name = "eval/toyland-target-val/scores.json"
    here, stored = (json.loads((each / name).read_text()) for each in (run, finished))
    assert here.keys() == stored.keys()
    assert here["protocol"] == stored["protocol"]
    pixels = np.array(stored["confusion"])
    assert (pixels.sum(0) > 0).sum() >= 3, "the stored run should predict several classes"
    assert np.abs(np.array(here["confusion"]) - pixels).sum() <= 0.01 * pixels.sum()
    assert here["means"] == pytest.approx(stored["means"], abs=0.01)


def test_report_writes_one_page_of_two_runs(root, finished, tmp_path):
    run = tmp_path / "rccr"
    shutil.copytree(finished, run)
    other = unpack_run("spcl", tmp_path / "spcl")
    page = tmp_path / "page.html"
    words = ["--out", page, "--images", 0, "--root", root]
    udaseg("report", run, other, *words, cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "toyland-target" in text
    assert "cannot be read" not in text


def test_predict_makes_the_stored_masks_again(finished, tmp_path):
    words = ["--checkpoint", finished, "--device", "cpu", "--save", "color,ids,confidence"]
    udaseg("predict", FIXTURES / "images", *words, "--out", tmp_path / "masks", cwd=tmp_path)
    here, stored = _tree(tmp_path / "masks"), _tree(FIXTURES / "masks")
    assert here.pop("legend.png")  # was not written before
    assert here.keys() == stored.keys()
    facts = [json.loads(each.pop("prediction.json")) for each in (here, stored)]
    assert len([facts.pop("checkpoint") for facts in facts]) == 2
    assert facts[0].pop("bits") is None  # of 16-bit images, which were all read as 16 bits before
    assert facts[0].pop("bands") is None  # of TIFFs, which were refused before
    assert facts[0].pop("ids") == {"color": "train", "ids": "train"}  # was not stored before
    assert facts[0] == facts[1]
    seen = set()
    for name, data in stored.items():
        one, other = (
            cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_UNCHANGED)
            for each in (here[name], data)
        )
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        steps = np.abs(one.astype(int) - other.astype(int))
        different = steps > 2 if name.startswith("confidence/") else steps > 0
        assert different.mean() <= 0.01, name
        seen |= set(np.unique(other)) if name.startswith("ids/") else set()
    assert len(seen) >= 3, "the stored masks should hold several classes"


def test_predict_resume_keeps_the_stored_masks_and_makes_what_is_missing(finished, tmp_path):
    masks = tmp_path / "masks"
    shutil.copytree(FIXTURES / "masks", masks)
    facts = json.loads((masks / "prediction.json").read_text(encoding="utf-8"))
    # masks of a checkpoint elsewhere are not gone on with
    facts["checkpoint"] = str(finished / "checkpoints" / "step-000004.pt")
    (masks / "prediction.json").write_text(json.dumps(facts), encoding="utf-8")
    (masks / "ids" / "b.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in masks.rglob("*.png")}
    words = ["--checkpoint", finished, "--device", "cpu", "--save", "color,ids,confidence"]
    udaseg("predict", FIXTURES / "images", *words, "--out", masks, "--resume", cwd=tmp_path)
    assert (masks / "ids" / "b.png").is_file()
    kept = [path for path in before if path.stem != "b"]
    assert len(kept) == 6
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_resuming_a_finished_run_changes_no_tensor(root, finished, tmp_path):
    run = tmp_path / "rccr"
    shutil.copytree(finished, run)
    udaseg("adapt", "--resume", run, "--root", root, cwd=tmp_path)
    assert _steps(run) == [1, 2, 3, 4]
    found, wanted = tensors_of(run), tensors_of(finished)
    assert found.keys() == wanted.keys()
    _assert_ends_as_stored(run, "rccr")


@pytest.mark.parametrize("name", ["rccr", "sepico", "advent"])
def test_a_run_that_a_signal_ended_ends_where_the_undisturbed_one_did(
    root, finished, tmp_path, name
):
    run = unpack_run(f"{name}_interrupted", tmp_path / name)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    udaseg("adapt", "--resume", run, "--root", root, cwd=tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert _steps(run) == [1, 2, 3, 4]
    _assert_ends_as_stored(run, name)
    if name == "rccr":
        _assert_close(tensors_of(run), tensors_of(finished))
        _assert_losses(_losses(run), _losses(finished))


def test_a_staged_run_goes_on_from_within_a_stage(root, tmp_path):
    whole = unpack_run("spcl", tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in run.glob("checkpoints/step-000006.*"):
        path.unlink()
    for name in ("2-contrast/checkpoint", "3-self_distillation"):
        shutil.rmtree(run / "stages" / name)
    udaseg("adapt", "--resume", run, "--root", root, cwd=tmp_path)
    assert _steps(run) == [1, 2, 3, 4, 5, 6]
    _assert_ends_as_stored(run, "spcl")
    _assert_close(tensors_of(run), tensors_of(whole))
    _assert_losses(_losses(run), _losses(whole))
    marker = "stages/3-self_distillation/pseudo_labels.json"
    here, stored = (json.loads((each / marker).read_text()) for each in (run, whole))
    assert here.keys() == stored.keys()
    assert here["images"] == stored["images"]
    labels = "stages/3-self_distillation/pseudo_labels"
    assert _tree(run / labels).keys() == _tree(whole / labels).keys()


def test_a_set_that_was_prepared_and_is_unchanged_is_not_made_again(data_in_its_place, tmp_path):
    root = data_in_its_place
    manifest = root / "prepared" / "streets" / "manifest.jsonl"
    before, made = _tree(root / "prepared"), manifest.stat()
    udaseg("prepare", root / "streets.yaml", "--root", root, cwd=tmp_path)
    assert _tree(root / "prepared") == before
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    udaseg("prepare", "--verify", "streets", "toyland", "--root", root, cwd=tmp_path)
    os.utime(root / "toyland" / "source" / "train" / "labels" / "00003.png", ns=(1, 1))
    udaseg("prepare", root / "streets.yaml", "--root", root, cwd=tmp_path)
    after = _tree(root / "prepared")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"streets/manifest.jsonl", "streets/source.json", "streets/index.json"}
    indexes = [json.loads(tree["streets/index.json"]) for tree in (before, after)]
    assert indexes[1].pop("bits") == 0  # earlier versions did not look for 16-bit images
    assert indexes[1].pop("bands") is None
    # nor for images that are stored turned, which the rows of format 2 have at their end
    assert [index.pop("format") for index in indexes] == [1, 2]
    for rows in indexes[1]["splits"].values():
        assert [row.pop() for row in rows] == [1] * len(rows)
    assert indexes[0] == indexes[1]


NEWER = ("/daformer", "/mic", "/foundation")
"""Ends of the names of recipes that were added since."""


def test_every_shipped_recipe_is_stored_but_for_newer_ones():
    assert {
        name
        for name in SHIPPED
        if not name.endswith(NEWER) and not name.startswith("loveda_urban_rural/")
    } == STORED.keys()


GONE = {
    *("  worker_timeout: 300", "  channels_last: true"),
    *("  tensorboard: auto", "  tensorboard: never"),
}
"""Settings without a meaning today, or with another name."""

CORRECTED = ("/spcl", "_release")
"""Ends of the names of recipes whose values came closer to the method since."""


def _assert_writes_out(path):
    """Assert that a recipe is written out in the same lines; those that are new have defaults."""
    recipe = load(path)
    lines = iter(dump(recipe).splitlines())
    before = [line for line in path.read_text(encoding="utf-8").splitlines() if line not in GONE]
    assert [line for line in before if line not in lines] == []
    return recipe


@pytest.mark.parametrize("name", STORED)
def test_a_recipe_is_written_out_as_before_and_reads_back_the_same(name):
    stored = _assert_writes_out(STORED[name])
    assert from_dict(to_dict(stored)) == stored
    if not name.endswith(CORRECTED):
        assert load(SHIPPED[name]) == stored


def test_a_runs_recipe_reads_back_the_same(finished):
    for path in sorted((FIXTURES / "runs").glob("*/recipe.yaml")):
        _assert_writes_out(path)
    payload = torch.load(finished / "checkpoints" / "step-000004.pt", weights_only=True)
    written = yaml.safe_load((finished / "recipe.yaml").read_text(encoding="utf-8"))
    assert dict(leaves(payload["recipe"])) == dict(leaves(written))


@OTHER_OPENCV
def test_toyland_frames_have_the_pixels_of_before():
    assert frame_digests() == GOLDEN["frames"]


@OTHER_OPENCV
def test_batches_are_those_of_before(root):
    assert batch_digests(root) == GOLDEN["batches"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in GOLDEN["losses"]
    ],
)
def test_every_loss_of_the_first_steps_is_that_of_before(root, tmp_path, name):
    losses = golden_losses(name, root, tmp_path / "run", STORED[name])
    _assert_losses(losses, GOLDEN["losses"][name])


def test_losses_of_every_stored_toyland_recipe_are_stored():
    assert GOLDEN["losses"].keys() == {name for name in STORED if name.startswith("toyland/")}
