"""`resize: {short_side: N}` keeps the shape of each image, in training and in every command."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.nn.functional import avg_pool2d

import udaseg
from tests.cli.running import udaseg as command
from tests.support import files
from tests.support.colors import ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.pseudo_labels import pseudo_label_path
from udaseg.data.open import open_dataset
from udaseg.figures.cells import look_at, source_input
from udaseg.inference import export, sizes
from udaseg.inspection.info import domain_text
from udaseg.inspection.report_images import render_report_images
from udaseg.models.segmenter import SegmenterOutput
from udaseg.selection.candidates import Candidate, EvaluationSets
from udaseg.selection.images import ImageSet
from udaseg.selection.measure import compute_criteria
from udaseg.sizes import ShortSide, resized
from udaseg.training.plan import _warn_of_aspect_ratio
from udaseg.training.setup import build_batches, build_crop_source

SIZES = [(24, 40), (40, 24), (32, 32), (20, 96)]
INPUTS = [(12, 20), (20, 12), (12, 12), (12, 58)]  # short side 12; 96 / 20 * 12 = 57.6
SHORT_12 = "{short_side: 12}"


@pytest.mark.parametrize(
    ("stored", "resize", "expected"),
    [
        ((1080, 1920), ShortSide(540), (540, 960)),
        ((1920, 1080), ShortSide(540), (960, 540)),
        ((375, 1242), ShortSide(512), (512, 1696)),
        ((7, 7), ShortSide(100), (100, 100)),
        ((100, 1600), ShortSide(50), (50, 800)),
        ((1, 10_000), ShortSide(512), (20, 204_800)),  # 16 x 512 x 512 pixels
        ((1080, 1920), (5, 6), (5, 6)),
        ((1080, 1920), None, (1080, 1920)),
    ],
)
def test_the_shorter_side_is_n_and_the_other_follows(stored, resize, expected):
    assert resized(stored, resize) == expected


class Watching(ColorNetwork):
    """Return the colours as logits, pooled as features, and remember the sizes of images."""

    feature_channels = 3

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        self.seen.add(tuple(images.shape[-2:]))
        return SegmenterOutput(10 * images, avg_pool2d(images, 4), None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Provide images of four shapes whose colours are their labels, and a network for them."""
    folder = tmp_path_factory.mktemp("world")
    for number, size in enumerate(SIZES):
        truth = random_labels(*size, number)
        image = files.coded(Image.fromarray(painted(truth)), "PNG")
        files.put(folder / f"images/{number}.png", image)
        files.put(folder / f"labels/{number}.png", files.gray_png(truth))
    globs = "".join(f"  {split}: DIR/*.png\n" for split in ("train", "val"))
    globs = f"images:\n{globs}labels:\n{globs}".replace("DIR", "images", 2).replace("DIR", "labels")
    yaml = files.dataset_yaml(folder, f"name: mixed\n{globs}classes: [road, sky, car]\n", "m.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        udaseg.prepare(yaml)
        words = [f"{side}.data=mixed" for side in ("source", "target", "validation")]
        sides = [f"{side}.resize={SHORT_12}" for side in ("source", "target", "validation")]
        words += [*sides, "source.crop=[32, 32]", "target.crop=[32, 32]", "source.flip=false"]
        model = loaded_colors([*words, "validation.split=val"], network=Watching())
        model.checkpoint = Path("runs/colors/checkpoints/step-000007.pt")
        model.checkpoint.parent.mkdir(parents=True)
        model.checkpoint.write_bytes(b"weights")
        replace_load(patch, lambda *_, **__: model)
        data = open_dataset("mixed", root=Path("data"))
        yield SimpleNamespace(model=model, data=data, images=ImageSet(data, "val"))


def test_training_reads_each_image_in_its_shape_and_cuts_crops_of_one_size(world):
    recipe = world.model.recipe
    crops = build_crop_source(recipe.source, world.data, labelled=True)
    read = [crops.read(sample) for sample in crops.samples]
    assert [image.shape[:2] for image, _ in read] == INPUTS
    for image, labels in read:
        assert labels.shape == image.shape[:2]
        pure = image.max(2) == 255  # elsewhere, pixels of two classes are averaged
        assert pure.mean() > 0.5
        np.testing.assert_array_equal(image.argmax(2)[pure], labels[pure])
    assert {crops.read(s)[0].shape[:2] for s in crops.samples} == set(INPUTS)
    batches = build_batches(recipe, world.data, world.data)
    for step in range(3):
        batch = batches[step]
        assert batch.source_images.shape[-2:] == batch.target_images.shape[-2:] == (32, 32)
        assert (batch.source_labels[:, 12:, 12:] == 255).all()  # no image is larger in both
        assert (batch.target_images != 0).any(1).all()  # enlarged to cover the crop


def test_each_of_several_sets_has_a_size_of_its_own_kind(world):
    source = replace(world.model.recipe.source, resize_each=(ShortSide(12), None))
    assert "sizes short side 12 and as stored" in domain_text(source)
    assert "resized to short side 12" in domain_text(world.model.recipe.target)


def test_a_cache_of_a_short_side_has_the_pixels_of_the_files(world, caplog):
    source = world.model.recipe.source
    plain = build_crop_source(source, world.data, labelled=True)
    report = write_cache(world.data, ShortSide(12), workers=1)
    try:
        cached = build_crop_source(source, world.data, labelled=True)
        assert cached.cache is not None
        assert cached.cache.folder.name == "cache-12"
        assert cached.cache.size == ShortSide(12)
        for sample in plain.samples:
            for one, other in zip(plain.read(sample), cached.read(sample), strict=True):
                np.testing.assert_array_equal(one, other)
        other = replace(source, resize=ShortSide(13))
        assert build_crop_source(other, world.data, labelled=True).cache is None
        (report.cache.folder / "cache.json").unlink()
        assert build_crop_source(source, world.data, labelled=True).cache is None
        assert "run `udaseg prepare mixed --cache 12` again" in caplog.text
    finally:
        for path in sorted(report.cache.folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        report.cache.folder.rmdir()


def test_prepare_takes_a_short_side_and_says_how_training_uses_it(world):
    out = command("prepare", "m.yaml", "--cache", "8", cwd=Path.cwd()).stdout
    words = " ".join(out.replace("│", " ").split())
    assert "4 images of short side 8 with their labels as png" in words
    assert "used by training with resize {short_side: 8}" in words
    assert json.loads(Path("data/prepared/mixed/cache-8/cache.json").read_text())["size"] == {
        "short_side": 8
    }
    wrong = command("prepare", "m.yaml", "--cache", "8.5", cwd=Path.cwd(), expect=2)
    assert "WIDTHxHEIGHT, [HEIGHT, WIDTH] or the short side in pixels" in wrong.stderr


def _evaluate(world):
    scores = udaseg.evaluate(world.model)
    assert np.sum(scores.confusion) == sum(height * width for height, width in SIZES)
    assert scores.miou > 0.9
    assert "short side 12" in json.dumps(scores.to_json())


def _evaluate_by_name(world):
    udaseg.evaluate(world.model, data="m.yaml")


def _predict(world):
    for number, size in enumerate(SIZES):
        assert world.model.predict(f"images/{number}.png").ids.shape == size


def _predict_files(world):
    udaseg.predict("images", world.model, out="masks")
    assert json.loads(Path("masks/prediction.json").read_text())["network_input"] == {
        "short_side": 12
    }


def _predict_in_tiles(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "MAX_WHOLE_PIXELS", 1)
        for number, size in enumerate(SIZES):
            assert world.model.predict(f"images/{number}.png").ids.shape == size
    assert world.model.segmenter.seen == {(32, 32), (32, 64)}  # tiles end on the grid of 32
    world.model.segmenter.seen = set(INPUTS)


def _report(world):
    render_report_images({"run": world.model}, world.data, "val", show=4, scan=4)


def _features(world):
    look_at(world.model, world.images, points=3)


def _features_of_the_source(world):
    look_at(world.model, world.images, read=source_input, points=3)


def _select(world):
    sets = EvaluationSets(world.images, world.images, world.images)
    candidate = Candidate(Path("runs/colors"), world.model.checkpoint)
    compute_criteria(candidate, world.model, sets, device="cpu")


def _calibrate(world):
    udaseg.calibrate("runs/colors", on="source")


def _calibrate_on_mixtures(world):
    udaseg.calibrate("runs/colors", on="pseudo")


def _check_of_export(world):
    images = export._target_images(world.model.recipe, 4, Path("data"))
    assert json.loads(export._origin(world.model)["trained_size"]) == {"short_side": 12}
    world.model.segmenter.seen = {image.shape[:2] for image in images}


@pytest.mark.parametrize(
    "look",
    [
        *(_evaluate, _evaluate_by_name, _predict, _predict_files, _predict_in_tiles, _report),
        *(_features, _features_of_the_source, _select, _calibrate, _calibrate_on_mixtures),
        _check_of_export,
    ],
)
def test_the_network_sees_each_image_in_its_shape(world, look):
    world.model.segmenter.seen = set()
    look(world)
    assert world.model.segmenter.seen == set(INPUTS)


def test_no_image_is_distorted_and_the_warning_of_those_that_are_says_how(world, caplog):
    samples = world.data.split("train")
    _warn_of_aspect_ratio("target", "target.resize", ShortSide(12), samples)
    assert not caplog.text
    _warn_of_aspect_ratio("target", "target.resize", (12, 20), samples)
    assert "3 of 4 target images have another aspect ratio than target.resize=[12, 20]" in (
        caplog.text
    )
    assert "'target.resize={short_side: 12}' keeps their aspect ratio" in caplog.text


@pytest.mark.slow
def test_a_staged_run_on_images_of_many_shapes(world, tmp_path):
    short = "{short_side: 48}"
    stage = f"{{resize: {short}, crop: [64, 64], scale: [1, 1], flip: true, batch: 2}}"
    udaseg.adapt(
        shipped(
            "toyland/spcl",
            [
                *(word for word in TINY if ".resize" not in word),
                *(f"{side}.data=mixed" for side in ("source", "target", "validation")),
                *(f"{side}.resize={short}" for side in ("source", "target", "validation")),
                f"method.stages.contrast.pseudo_labels.resize={short}",
                f"method.stages.self_distillation.target={stage}",
            ],
        ),
        steps=10,
        out=tmp_path / "run",
    )
    assert (tmp_path / "run/eval/mixed-val/scores.json").is_file()
    labels = tmp_path / "run/stages/2-contrast/pseudo_labels"
    paths = [pseudo_label_path(labels, sample) for sample in world.data.split("train")]
    assert [read_train_ids(path).shape for path in paths] == SIZES
