"""Each command sees a turned image as its upright twin, pixel for pixel, whatever its container.

The network answers differently at the top and at the bottom, left and right, so that an image that
is turned wrongly gives other masks.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d

import udaseg
from tests.support.colors import loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from tests.support.small import shipped
from tests.support.toy import TINY
from tests.support.turned import CONTAINERS, as_shown, write_twins
from udaseg.data.doctor.doctor import doctor
from udaseg.data.files.images import write_png
from udaseg.data.open import open_dataset
from udaseg.errors import DataError
from udaseg.evaluation.score_predictions import count_predictions
from udaseg.figures.cells import look_at
from udaseg.inference import export
from udaseg.inspection.report_images import render_report_images
from udaseg.models.segmenter import SegmenterOutput
from udaseg.selection.candidates import Candidate, EvaluationSets
from udaseg.selection.images import ImageSet
from udaseg.selection.measure import compute_criteria
from udaseg.training.callbacks.previews import Previews
from udaseg.training.setup import build_batches

HOW = ("stored", "upright")
CASES = [(c, o, how) for c in CONTAINERS for o in range(1, 9) for how in HOW]
DIAGONAL = {
    (list(CONTAINERS)[(number + shift) % 5], number % 8 + 1, how)
    for shift, how in enumerate(HOW)
    for number in range(8)
}
SIZES = [(24, 40), (24, 40), (32, 32)]


class ByPlace(nn.Module):
    """Add to the colours what depends on the place."""

    align_corners = False
    backbone = SimpleNamespace(one_size_onnx=False)

    def forward(self, images):
        height, width = images.shape[-2:]
        down = torch.linspace(0, 3, height)[:, None].expand(height, width)
        right = torch.linspace(0, 2, width).expand(height, width)
        return SimpleNamespace(logits=4 * images + torch.stack([down, right, 1 - down * right]))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=() if case in DIAGONAL else pytest.mark.slow) for case in CASES
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def world(request, tmp_path_factory):
    """Provide a set of turned images, its twin, and the network as if trained on either."""
    container, orientation, labels = request.param
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(orientation)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    truths = [random_labels(*size, seed) for seed, size in enumerate(SIZES)]
    write_twins(folder, images, truths, container, orientation, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        models = {name: _trained_on(name) for name in ("turned", "twin")}
        replace_load(patch, lambda path, **_: models[Path(path).parts[1]])
        udaseg.prepare(["turned.yaml", "twin.yaml"], root="data")
        sets = {name: open_dataset(name, root=Path("data")) for name in models}
        yield SimpleNamespace(orientation=orientation, sets=sets, models=models)


def _trained_on(name):
    """Return the network as if trained on a set, with a checkpoint of its own."""
    data = [f"{side}.data={name}" for side in ("source", "target", "validation")]
    model = loaded_colors([*data, "validation.resize=null"], network=ByPlace())
    model.checkpoint = Path("runs", name, "checkpoints", "step-000007.pt")
    model.checkpoint.parent.mkdir(parents=True)
    model.checkpoint.write_bytes(b"weights")
    return model


def _of_both(function):
    return [function(name) for name in ("turned", "twin")]


def _read(path):
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def _assert_same_files(folders, orientation, kinds=None):
    """Compare two folders; in the first, only masks for people are upright, the rest as stored."""
    one, other = (
        {
            path.relative_to(folder).with_suffix(""): path
            for path in folder.rglob("*.*")
            if path.suffix in (".png", ".npy")
        }
        for folder in map(Path, folders)
    )
    assert one.keys() == other.keys()
    assert one
    for name, path in one.items():
        pixels, twin = _read(path), _read(other[name])
        if pixels.ndim == 3 and path.suffix == ".npy":
            pixels = np.stack([as_shown(plane, orientation) for plane in pixels])
        elif name.parts[0] not in ("color", "overlay", "legend"):
            pixels = as_shown(pixels, orientation)
        np.testing.assert_array_equal(pixels, twin, err_msg=str(name))


def test_predict(world):
    kinds = ("color", "ids", "overlay", "confidence", "logits")
    options = udaseg.PredictOptions(save=kinds, device="cpu")
    for name, model in world.models.items():
        udaseg.predict(f"{name}/images", model, out=f"masks/{name}", options=options)
    _assert_same_files(["masks/turned", "masks/twin"], world.orientation)
    for one, other in zip(
        *_of_both(lambda n: list(udaseg.predict(f"{n}/images", world.models[n]))), strict=True
    ):
        np.testing.assert_array_equal(one.color(), other.color())
        np.testing.assert_array_equal(one.overlay(), other.overlay())


def test_eval_and_its_saved_predictions(world):
    def scores(name):
        options = udaseg.EvaluationOptions(save=f"saved/{name}", root="data")
        return udaseg.evaluate(world.models[name], data=name, options=options)

    one, other = _of_both(scores)
    assert one.iou == other.iou
    np.testing.assert_array_equal(one.confusion, other.confusion)
    _assert_same_files(["saved/turned", "saved/twin"], world.orientation)
    one, other = _of_both(
        lambda n: (
            count_predictions(
                Path("saved", n), "train", world.models[n].classes, world.sets[n], "val"
            ).table
        )
    )
    np.testing.assert_array_equal(one, other)


def test_report(world):
    one, other = _of_both(
        lambda n: render_report_images(
            {"run": world.models[n]}, world.sets[n], "val", show=3, scan=3
        )
    )
    for example, twin in zip(one.examples, other.examples, strict=True):
        assert example.reason == twin.reason
        assert example.layers == twin.layers
    assert vars(one.reliability["run"]).keys() == vars(other.reliability["run"]).keys()
    for part, value in vars(one.reliability["run"]).items():
        np.testing.assert_array_equal(value, vars(other.reliability["run"])[part])


def test_grid(world):
    def pixels(name):
        options = udaseg.GridOptions(images=3, titles=("run",), width=40, root="data")
        path = udaseg.grid(f"runs/{name}", data=name, out=f"{name}.png", options=options)
        return np.asarray(Image.open(path))

    one, other = _of_both(pixels)
    np.testing.assert_array_equal(one, other)


def test_features(world):
    class WithFeatures(ByPlace):
        feature_channels = 3

        def forward(self, images):
            logits = super().forward(images).logits
            return SegmenterOutput(logits, avg_pool2d(images, 8), None)

    model = loaded_colors(["validation.resize=null"], network=WithFeatures())

    def look(name):
        return look_at(model, ImageSet(world.sets[name], "val"), points=3, confidences=(0.0,))

    one, other = _of_both(look)
    for part in ("sums", "cells"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    for part, value in vars(one.points).items():
        np.testing.assert_array_equal(value, vars(other.points)[part])
    np.testing.assert_array_equal(one.predictions[0.0].table, other.predictions[0.0].table)


def test_select(world):
    def values(name):
        images = ImageSet(world.sets[name], "val")
        sets = EvaluationSets(images, images, images)
        candidate = Candidate(Path("runs", name), world.models[name].checkpoint)
        compute_criteria(candidate, world.models[name], sets, device="cpu")
        return candidate.values, candidate.oracle

    one, other = _of_both(values)
    assert one == other


@pytest.mark.parametrize("on", ["source", "pseudo"])
def test_calibrate(world, on):
    one, other = _of_both(lambda n: udaseg.calibrate(f"runs/{n}", on=on, root="data"))
    assert one.temperature == other.temperature
    for row, twin in zip(one.rows, other.rows, strict=True):
        assert (row.before, row.after) == (twin.before, twin.after)


def test_the_check_of_export(world, monkeypatch):
    seen = {}

    def compare(module, path, images, *, on_real_images):
        assert on_real_images
        seen[path] = images
        return export.OnnxComparison(3, True, 0.0, 0.0, 1.0)

    monkeypatch.setattr(export, "compare_with_torch", compare)
    monkeypatch.setattr(export, "write_onnx", lambda module, path, metadata: path.touch())
    monkeypatch.setattr(export, "_is_installed", lambda package: True)
    for name in ("turned", "twin"):
        udaseg.export(f"runs/{name}", images=3, root="data")
    for image, twin in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(image, twin)


def _batches(data, method):
    recipe = shipped(f"toyland/{method}", TINY)
    return recipe, build_batches(recipe, data, None if method == "source_only" else data)


def test_batches_of_training(world):
    def batches(name):
        _, made = _batches(world.sets[name], "dacs")
        return [made[step] for step in range(4)]

    for batch, twin in zip(*_of_both(batches), strict=True):
        for part in ("source_images", "source_labels", "target_images"):
            assert torch.equal(getattr(batch, part), getattr(twin, part))


@pytest.mark.parametrize("method", ["source_only", "dacs"])
def test_previews(world, method):
    def sheet(name):
        data = world.sets[name]
        recipe, batches = _batches(data, method)
        objective = SimpleNamespace(student=ByPlace())
        setup = SimpleNamespace(batches=batches, objective=objective, device=torch.device("cpu"))
        return Previews(recipe, data.classes, Path(name, "run")).draw(setup, 7)

    one, other = _of_both(sheet)
    assert one is not None
    np.testing.assert_array_equal(one, other)


def test_doctor_names_the_turned_images(world):
    for data in (lambda n: n, lambda n: f"{n}.yaml"):
        one, other = _of_both(lambda n, data=data: doctor(data(n), root=Path("data")))
        named = [f for f in one.findings if f.code == "exif-orientation"]
        assert [f.count for f in named] == ([] if world.orientation == 1 else [6])
        drop = {"role", "name", "folder"}
        facts, twin = (
            [{k: v for k, v in s.to_dict().items() if k not in drop} for s in d.sets]
            for d in (one, other)
        )
        assert facts == twin
        codes = {f.code for f in one.findings} - {"exif-orientation"}
        assert codes == {f.code for f in other.findings}


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_in_colours_of_turned_images_are_refused(tmp_path, monkeypatch, orientation):
    monkeypatch.chdir(tmp_path)
    ids = random_labels(24, 40)
    write_twins(tmp_path, [painted(ids)], [ids], "png", orientation, labels="stored")
    udaseg.prepare("turned.yaml", root="data")
    model = loaded_colors()
    options = udaseg.PredictOptions(save=("ids", "color"), device="cpu")
    udaseg.predict("turned/images", model, out="masks", options=options)
    scores = udaseg.score_predictions("masks/ids", "turned", root="data")
    assert scores.miou == 1
    with pytest.raises(DataError, match=rf"color/0.png: is in colours.*orientation {orientation}"):
        udaseg.score_predictions("masks/color", "turned", root="data")
    upright = np.asarray(Image.open("masks/color/0.png").convert("P"))
    if orientation == 6:
        write_png(Path("theirs/0.png"), upright)
        with pytest.raises(DataError, match=r"has size 40x24, but .*0.png as stored has 24x40"):
            udaseg.score_predictions("theirs", "turned", root="data")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_resumed_predict_keeps_the_masks_of_turned_images(tmp_path, monkeypatch, orientation):
    monkeypatch.chdir(tmp_path)
    ids = random_labels(24, 40)
    write_twins(tmp_path, [painted(ids)], [ids], "tiff", orientation, labels="stored")
    kinds = ("ids", "color", "overlay", "confidence", "logits")
    for more in ({}, {"resume": True}):
        options = udaseg.PredictOptions(save=kinds, device="cpu", **more)
        summary = udaseg.predict("turned/images", loaded_colors(), out="masks", options=options)
    assert summary.kept == 1
