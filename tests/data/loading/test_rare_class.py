"""Rare-class sampling: published class probabilities, minimum pixels, uniform valid windows."""

import collections
import math

import numpy as np
import pytest
import torch

from tests.support.small import shipped
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import write_png
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.rare_class import (
    RareClassImages,
    RareClassSettings,
    class_probabilities,
    rare_class_corner,
)
from udaseg.errors import DataError, RecipeError
from udaseg.recipe.load import from_dict, to_dict
from udaseg.recipe.stages import stages_of
from udaseg.training.setup import build_batches

# pixel shares of GTA5 in percent and the published probabilities at temperature 0.01
GTA5 = {
    "road": (36.1498, 0.0000),
    "sidewalk": (9.3141, 0.0000),
    "building": (19.0285, 0.0000),
    "wall": (2.0765, 0.0151),
    "fence": (0.7125, 0.0591),
    "pole": (1.1926, 0.0366),
    "light": (0.1511, 0.1036),
    "sign": (0.0908, 0.1100),
    "vegetation": (8.5537, 0.0000),
    "terrain": (2.4223, 0.0107),
    "sky": (15.2319, 0.0000),
    "person": (0.4082, 0.0801),
    "rider": (0.0344, 0.1164),
    "car": (2.8335, 0.0071),
    "truck": (1.2716, 0.0338),
    "bus": (0.4140, 0.0796),
    "train": (0.0729, 0.1120),
    "motorcycle": (0.0355, 0.1163),
    "bicycle": (0.0061, 0.1197),
}


@pytest.mark.parametrize("name", GTA5)
def test_the_chances_of_gta5_are_the_published_ones(name):
    shares = np.array([round(share * 1e4) for share, _ in GTA5.values()])
    chances = class_probabilities(shares, 0.01)
    assert abs(chances[list(GTA5).index(name)] - GTA5[name][1]) < 1e-4
    assert abs(chances.sum() - 1) < 1e-12


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.3, 50.0])
def test_the_chances_are_a_softmax_over_what_may_be_drawn(temperature):
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = rng.integers(0, 1000, 7)
        among = rng.random(7) < 0.7
        if not (among & (pixels > 0)).any():
            continue
        weights = [
            math.exp((min(pixels[among & (pixels > 0)]) - count) / pixels.sum() / temperature)
            if allowed and count
            else 0.0
            for count, allowed in zip(pixels.tolist(), among, strict=True)
        ]
        expected = [weight / sum(weights) for weight in weights]
        assert np.allclose(class_probabilities(pixels, temperature, among), expected, atol=1e-12)


def test_without_a_class_to_draw_there_are_no_chances():
    with pytest.raises(ValueError, match="no class"):
        class_probabilities(np.zeros(3, np.int64), 0.01)
    with pytest.raises(ValueError, match="no class"):
        RareClassImages(np.full((4, 3), 99), RareClassSettings(min_pixels=100))


def test_classes_come_by_their_chances_and_their_images_alike():
    pixels = np.array([[900, 50, 0, 3], [800, 0, 40, 3], [700, 60, 70, 3], [600, 9, 0, 3]])
    images = RareClassImages(pixels, RareClassSettings(temperature=0.5, min_pixels=40))
    assert images.unavailable_classes == (3,)
    assert images.probabilities[3] == 0
    rng = np.random.default_rng(0)
    drawn = collections.Counter(images.draw(rng) for _ in range(6000))
    holds = {0: {0, 1, 2, 3}, 1: {0, 2}, 2: {1, 2}}
    assert set(drawn) == {(image, k) for k, holders in holds.items() for image in holders}
    for (_, k), count in drawn.items():
        expected = 6000 * images.probabilities[k] / len(holds[k])
        assert abs(count - expected) < 5 * math.sqrt(expected)


def _naive_corners(labels, train_id, size, least):
    """Return the corners of all windows with enough pixels of a class, or with the most."""
    height, width = min(size[0], labels.shape[0]), min(size[1], labels.shape[1])
    counts = {
        (top, left): sum(
            int(labels[row, column]) == train_id
            for row in range(top, top + height)
            for column in range(left, left + width)
        )
        for top in range(labels.shape[0] - height + 1)
        for left in range(labels.shape[1] - width + 1)
    }
    enough = min(least, max(counts.values()))
    return {corner for corner, count in counts.items() if count >= enough}


@pytest.mark.parametrize(
    ("size", "least"),
    [((3, 4), 2), ((3, 4), 99), ((1, 1), 1), ((6, 8), 5), ((9, 3), 1), ((2, 9), 0)],
)
def test_every_window_with_enough_is_drawn_and_no_other(size, least):
    for seed in range(4):
        labels = np.random.default_rng(seed).choice(
            np.array([0, 1, 2, IGNORE], np.uint8), (6, 8), p=[0.5, 0.2, 0.1, 0.2]
        )
        rng = np.random.default_rng(seed)
        for train_id in (1, 2, 7):
            expected = _naive_corners(labels, train_id, size, least)
            drawn = collections.Counter(
                rare_class_corner(labels, train_id, size, least, rng)
                for _ in range(12 * len(expected))
            )
            assert set(drawn) <= expected
            assert len(drawn) > 0.98 * len(expected) - 1


def test_valid_windows_are_equally_likely():
    labels = np.zeros((5, 9), np.uint8)
    labels[2, 4] = 1
    expected = _naive_corners(labels, 1, (2, 3), 1)
    rng = np.random.default_rng(0)
    drawn = collections.Counter(rare_class_corner(labels, 1, (2, 3), 1, rng) for _ in range(6000))
    assert set(drawn) == expected
    assert len(expected) == 6
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in drawn.values())


def test_a_label_that_is_no_whole_array_is_counted_right():
    labels = np.zeros((8, 10), np.uint8)
    labels[6, 7] = 1
    rng = np.random.default_rng(0)
    turned = labels[::-1, ::2][:, 1:]
    assert rare_class_corner(turned, 1, (1, 1), 1, rng) in _naive_corners(turned, 1, (1, 1), 1)


CLASSES = ClassSpace(("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
SIZE = (24, 40)


@pytest.fixture
def source(tmp_path):
    """Write images whose red and green are row and column; 2 of 6 have a small spot of class 2."""
    samples = []
    for number in range(6):
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        image = np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)
        labels = (columns >= 30).astype(np.uint8)
        if number in (1, 4):
            labels[3:7, 20 + number : 25 + number] = 2
        write_png(tmp_path / f"{number}.png", image)
        write_png(tmp_path / f"{number}_label.png", labels)
        pixels = tuple(np.bincount(labels.ravel(), minlength=3).tolist())
        samples.append(Sample(f"{number}.png", f"{number}_label.png", *SIZE, pixels))
    return PreparedDataset("own", tmp_path, tmp_path, CLASSES, {"train": tuple(samples)})


def _batches(source, *, min_pixels=10, steps=40, **changes):
    rare = RareClassSettings(0.1, min_pixels, 12)
    crops = CropSource(source, "train", None, (8, 10), True, True, sampling="rare_class", rare=rare)
    settings = {"batch_source": 2, "batch_target": 2, "steps": steps, "seed": 3}
    return TrainingBatches(crops, None, BatchOptions(**{**settings, **changes}))


def _files(batches):
    images = (image for step in range(len(batches)) for image in batches[step].source_images)
    return [int(image[2, 0, 0]) for image in images]


def test_a_rare_class_is_seen_as_often_as_its_chance_says(source):
    batches = _batches(source, steps=150)
    labels = torch.cat([batches[step].source_labels for step in range(150)])
    shown = (labels == 2).sum((1, 2)) >= 12
    chance = class_probabilities(
        np.array([s.class_pixels for s in source.splits["train"]]).sum(0), 0.1
    )[2]
    assert chance > 0.4
    assert abs(float(shown.float().mean()) - chance) < 0.12


def test_image_and_label_of_a_rare_crop_move_alike(source):
    batches = _batches(source)
    for step in range(20):
        batch = batches[step]
        number, column = batch.source_images[:, 2], batch.source_images[:, 1].int()
        row = batch.source_images[:, 0].int()
        left = 20 + number.int()
        spot = (row >= 3) & (row < 7) & (column >= left) & (column < left + 5)
        spot &= (number == 1) | (number == 4)
        expected = torch.where(spot, 2, (column >= 30).int())
        assert torch.equal(batch.source_labels.int(), expected)


def test_rare_batches_hang_on_seed_step_and_rank_alone(source):
    first, again, other = _batches(source), _batches(source), _batches(source, seed=4)
    for step in (9, 0, 31):
        assert torch.equal(first[step].source_images, again[step].source_images)
        assert torch.equal(first[step].source_labels, again[step].source_labels)
        assert first.image_paths(step) == again.image_paths(step)
    assert _files(first) != _files(other)
    whole = _files(_batches(source, steps=10, batch_source=4))
    shares = [_files(_batches(source, steps=10, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [file for n in range(10) for share in shares for file in share[2 * n :][:2]] == whole


def test_names_are_those_of_the_images_drawn(source):
    batches = _batches(source)
    for step in range(5):
        numbers = [int(image[2, 0, 0]) for image in batches[step].source_images]
        assert [f"{number}.png" for number in numbers] == [
            name.split("/")[-1] for name in batches.image_paths(step)
        ]


def test_a_class_without_enough_in_any_image_is_told_and_never_drawn_for(source):
    assert _batches(source, min_pixels=100).classes_never_drawn == (2,)
    with pytest.raises(DataError, match=r"9999 pixels of any class; lower source\.rare_class"):
        _batches(source, min_pixels=9999)


def test_an_index_without_counts_is_refused(source):
    bare = tuple(Sample(sample.image, sample.label, *SIZE) for sample in source.splits["train"])
    dataset = PreparedDataset("own", source.folder, source.folder, CLASSES, {"train": bare})
    with pytest.raises(DataError, match=r"which rare-class sampling needs; run `udaseg prepare`"):
        _batches(dataset)


@pytest.mark.parametrize("word", ["rare_class", "class_balanced"])
def test_a_target_is_drawn_without_looking_at_classes(source, word):
    target = CropSource(source, "train", None, (8, 8), True, labelled=False, sampling=word)
    with pytest.raises(ValueError, match="uniformly"):
        TrainingBatches(None, target, BatchOptions(1, 1, steps=1, seed=0))
    with pytest.raises(RecipeError, match=r"target\.sampling: must be uniform"):
        shipped("toyland/dacs", [f"target.sampling={word}"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0"),
        ("temperature", "-1"),
        ("min_pixels", "0"),
        ("min_crop_pixels", "-1"),
        ("min_crop_pixels", "4097"),
    ],
)
def test_numbers_out_of_range_are_named(key, value):
    words = [*TINY, "source.sampling=rare_class", f"source.rare_class.{key}={value}"]
    with pytest.raises(RecipeError, match=f"source.rare_class.{key}: must be"):
        shipped("toyland/source_only", words)


def test_recipes_are_uniform_unless_they_say_otherwise():
    recipe = shipped("toyland/rccr")
    assert recipe.source.sampling == recipe.target.sampling == "uniform"
    plain = to_dict(recipe)
    for domain in ("source", "target"):  # as written by an older version
        del plain[domain]["sampling"], plain[domain]["rare_class"]
    assert from_dict(plain) == recipe
    assert {stage.source_sampling for stage in stages_of(recipe)} == {"uniform"}
    rare = shipped("toyland/rccr", ["source.sampling=rare_class"])
    assert {stage.source_sampling for stage in stages_of(rare)} == {"rare_class"}


def test_a_stages_own_word_comes_before_the_recipes():
    plain = shipped("toyland/spcl")
    rare = shipped("toyland/spcl", ["source.sampling=rare_class"])
    before = [stage.source_sampling for stage in stages_of(plain)]
    assert set(before) == {"uniform", "class_balanced"}
    after = [stage.source_sampling for stage in stages_of(rare)]
    assert after == [word if word == "class_balanced" else "rare_class" for word in before]


def test_the_recipes_numbers_reach_the_batches(tmp_path, caplog):
    source, target = toy_pair(toy_root(tmp_path))
    words = ["source.sampling=rare_class", "source.rare_class.temperature=0.2"]
    words += ["source.rare_class.min_pixels=400", "source.rare_class.min_crop_pixels=64"]
    recipe = shipped("toyland/dacs", [*TINY, *words])
    batches = build_batches(recipe, source, target)
    assert batches.source.sampling == "rare_class"
    assert batches.source.rare == RareClassSettings(0.2, 400, 64)
    assert batches.target.sampling == "uniform"
    assert batches.classes_never_drawn
    names = [source.classes.names[number] for number in batches.classes_never_drawn]
    assert f"no image has 400 pixels of {', '.join(names)}" in caplog.text
    assert batches[0].source_images.shape == (2, 3, 64, 64)
