"""Several data sets as one source: classes by name, shares, sizes, caches and held files."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.support import files
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.data.datasets.joined import join_datasets
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.rare_class import RareClassSettings
from udaseg.data.open import hold_files
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataChanged, DataError, RecipeError
from udaseg.inference.pipeline import InferenceOptions, _decode_sample
from udaseg.inference.run_data import open_source
from udaseg.inspection.info import domain_text
from udaseg.recipe.load import dump, load
from udaseg.recipe.request import Overrides, requested_recipe
from udaseg.runs.folder import default_run_folder
from udaseg.selection.images import source_images
from udaseg.sizes import ShortSide
from udaseg.training.setup import build_crop_source
from udaseg.training.train import TrainOptions

CLASSES = {"game": ["road", "car", "sky"], "film": ["sky", "bus", "road"]}
BOTH = ["road", "car", "sky", "bus"]
COUNTS = {"game": 6, "film": 3}
SIZES = {"game": (40, 60), "film": (48, 48)}


def write(root, name, classes=None):
    """Write a data set whose red is the number of the image, and green the number of the set."""
    number = list(CLASSES).index(name) if name in CLASSES else 7
    height, width = SIZES.get(name, (40, 60))
    for index in range(COUNTS.get(name, 2)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = index, number
        files.put(root / name / f"images/{index}.png", files.coded(Image.fromarray(pixels), "PNG"))
        ids = np.repeat(np.arange(height) % 3, width).reshape(height, width)
        ids[0] = 255
        files.put(root / name / f"labels/{index}.png", files.gray_png(ids))
    names = ", ".join(classes or CLASSES[name])
    text = "images: images/*.png\nlabels: labels/*.png\nignore: [255]\n"
    path = files.dataset_yaml(root / name, f"name: {name}\n{text}classes: [{names}]\n")
    return prepare_dataset(str(path), root=root).dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in CLASSES:
        write(root, name)
    return root


@pytest.fixture
def recipe():
    """Return a recipe whose source are both sets."""
    recipe = shipped("toyland/source_only")
    source = replace(recipe.source, data=("game", "film"), crop=(32, 32), resize=None, flip=False)
    return replace(recipe, source=source)


def batches_of(recipe, root, *, steps=30, batch=2, **changes):
    spec = recipe.source
    crops = build_crop_source(spec, open_source(recipe, root=root), labelled=True)
    options = BatchOptions(batch_source=batch, batch_target=1, steps=steps, seed=0)
    return TrainingBatches(replace(crops, **changes), None, options)


def drawn(batches):
    """Return (set, image) of each draw."""
    pixels = [image[:2, 0, 0] for step in range(len(batches)) for image in _images(batches, step)]
    return [(list(CLASSES)[int(each[1])], int(each[0])) for each in pixels]


def _images(batches, step):
    return batches[step].source_images


def turns(draws, length):
    return [draws[start : start + length] for start in range(0, len(draws), length)]


# classes


def test_the_classes_are_those_of_all_sets_by_name(recipe, root):
    joined = open_source(recipe, root=root)
    assert joined.name == "game+film"
    assert list(joined.classes.names) == BOTH
    own = {name: open_source(with_data(recipe, name), root=root).classes for name in CLASSES}
    colors = dict(zip(own["film"].names, own["film"].colors, strict=True))
    colors |= dict(zip(own["game"].names, own["game"].colors, strict=True))
    assert joined.classes.colors == tuple(colors[name] for name in BOTH)


def with_data(recipe, data):
    return replace(recipe, source=replace(recipe.source, data=data))


def meant(name, height):
    """Return the class of each row of an image of a set, 255 in the first row."""
    rows = [BOTH.index(CLASSES[name][row % 3]) for row in range(height)]
    return np.array([255, *rows[1:]])


def test_labels_and_their_counts_have_the_ids_of_all_classes(recipe, root):
    joined = open_source(recipe, root=root)
    crops = build_crop_source(recipe.source, joined, labelled=True)
    for sample in joined.split("train"):
        image, labels = crops.read(sample)
        name = list(CLASSES)[image[0, 0, 1]]
        assert labels.shape == SIZES[name]
        np.testing.assert_array_equal(labels[:, 0], meant(name, len(labels)))
        np.testing.assert_array_equal(joined.read_labels(sample), labels)
        counts = [int((labels == train_id).sum()) for train_id in range(4)]
        assert list(sample.class_pixels) == counts


def test_inference_on_a_source_compares_with_the_same_ids(recipe, root):
    images = source_images(recipe, 9, root)
    assert images.to_json() == {"data": "game+film", "split": "train", "images": 9}

    decoded = _decode_sample(
        images.samples[-1], dataset=images.dataset, options=InferenceOptions(), truth=True
    )
    np.testing.assert_array_equal(decoded.truth[:, 0], meant("film", 48))


def test_sets_that_cannot_be_one_source_are_refused(recipe, root, tmp_path):
    game = open_source(with_data(recipe, "game"), root=root)
    alien = write(tmp_path, "alien", ["mud", "slime", "void"])
    with pytest.raises(DataError, match=r"alien: its classes \(mud, slime, void\) have no name in"):
        join_datasets([game, alien])
    with pytest.raises(DataError, match="game: is twice among the sources, perhaps by its name"):
        join_datasets([game, replace(game)])
    with pytest.raises(DataError, match="film: has no labels"):
        join_datasets([game, replace(game, name="film", classes=None)])
    elsewhere = replace(recipe, source=replace(recipe.source, split="val"))
    with pytest.raises(DataError, match=r"game\+film: no split 'val'; it has train"):
        batches_of(elsewhere, root)


# draws


def test_without_shares_all_images_are_one_list(recipe, root):
    draws = drawn(batches_of(recipe, root, steps=27, batch=1))
    images = {(name, index) for name in CLASSES for index in range(COUNTS[name])}
    for epoch in turns(draws, 9):
        assert set(epoch) == images
    assert draws[:9] != draws[9:18]


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (1, 2)])
def test_each_turn_has_the_images_of_the_shares_and_each_set_its_own_epochs(recipe, root, shares):
    spec = replace(recipe.source, shares=shares)
    batches = batches_of(replace(recipe, source=spec), root, steps=24, batch=sum(shares))
    draws, places = drawn(batches), Counter()
    for number, turn in enumerate(turns(draws, sum(shares))):
        assert Counter(name for name, _ in turn) == dict(zip(CLASSES, shares, strict=True)), number
        places["".join(name[0] for name, _ in turn)] += 1
    assert len(places) > 1  # the order in a turn varies
    for name, count in COUNTS.items():
        own = [index for of, index in draws if of == name]
        for epoch in turns(own[: len(own) // count * count], count):
            assert sorted(epoch) == list(range(count))


def test_a_batch_with_shares_is_a_function_of_its_step(recipe, root):
    spec = replace(recipe.source, shares=(2, 1), sampling="class_balanced")
    first, again = (batches_of(replace(recipe, source=spec), root) for _ in range(2))
    for step in (17, 2, 9):
        assert first[step].source_images.equal(again[step].source_images)
    assert [Counter(name for name, _ in drawn(first)[:60])[name] for name in CLASSES] == [40, 20]


def test_two_processes_draw_what_one_draws(recipe, root):
    spec = replace(recipe.source, shares=(2, 1))
    whole = batches_of(replace(recipe, source=spec), root, batch=4)
    halves = [
        TrainingBatches(
            whole.source, None, replace(whole.options, batch_source=2, rank=rank, world_size=2)
        )
        for rank in range(2)
    ]
    for step in range(6):
        images = torch.cat([half[step].source_images for half in halves])
        assert images.equal(whole[step].source_images)


@pytest.mark.parametrize("shares", [(), (1, 1)])
def test_rare_classes_are_found_in_the_sets_that_have_them(recipe, root, shares):
    rare = RareClassSettings(temperature=0.1, min_pixels=1, min_crop_pixels=64)
    spec = replace(recipe.source, shares=shares)
    batches = batches_of(replace(recipe, source=spec), root, sampling="rare_class", rare=rare)
    seen = Counter()
    order, _ = batches._domains["source"]
    for number in range(200):
        draw = order.draw(number)
        names = CLASSES[list(CLASSES)[draw.sample.part]]
        assert BOTH[draw.train_id] in names
        seen[BOTH[draw.train_id]] += 1
        image, labels = batches.source.read(draw.sample)
        rng = np.random.default_rng(draw.key)
        _, crop = batches.source.crop_image(draw.sample, image, labels, rng, draw.train_id)
        assert (crop == draw.train_id).sum() >= 64
    assert set(seen) == set(BOTH)
    assert batches.classes_never_drawn == ()


def test_a_class_is_never_drawn_only_if_no_set_has_enough_of_it(recipe, root):
    rare = RareClassSettings(temperature=0.1, min_pixels=780, min_crop_pixels=64)
    spec = replace(recipe.source, shares=(1, 1))
    with pytest.raises(DataError, match="film: no image of split 'train' contains 780 pixels"):
        batches_of(replace(recipe, source=spec), root, sampling="rare_class", rare=rare)
    rare = replace(rare, min_pixels=760)  # rows 1 of 3 of film: 768 px; of game: 780 to 800
    batches = batches_of(replace(recipe, source=spec), root, sampling="rare_class", rare=rare)
    assert batches.classes_never_drawn == ()


def test_a_bad_image_is_replaced_by_one_of_the_same_set(recipe, root):
    spec = replace(recipe.source, shares=(1, 1))
    order, _ = batches_of(replace(recipe, source=spec), root)._domains["source"]
    for number in range(20):
        draw = order.draw(number)
        assert order.replacement(draw, 0).sample.part == draw.sample.part


# sizes, caches, held files


@pytest.mark.parametrize("size", [(20, 30), ShortSide(20)])
def test_each_set_has_its_own_size_and_cache(recipe, root, size):
    spec = replace(recipe.source, resize_each=(size, None))
    joined = open_source(recipe, root=root)
    plain = build_crop_source(spec, joined, labelled=True)
    shapes = [plain.read(sample)[1].shape for sample in joined.split("train")]
    assert shapes == [(20, 30)] * 6 + [(48, 48)] * 3
    write_cache(joined.parts[0], size, workers=1)
    cached = build_crop_source(spec, joined, labelled=True)
    assert [part.cache is not None for part in cached.parts] == [True, False]
    for sample in joined.split("train"):
        for one, other in zip(plain.read(sample), cached.read(sample), strict=True):
            np.testing.assert_array_equal(one, other)


def test_files_of_every_set_are_held(recipe, root):
    joined = open_source(recipe, root=root)
    batches = batches_of(recipe, root)
    assert set(batches.digests()) == {"source"}
    hold_files(joined, "train", labelled=True)
    assert len(joined.held) == 2 * 9
    crops = build_crop_source(recipe.source, joined, labelled=True)
    content = crops.content()
    last = joined.split("train")[-1]
    path = joined.image_path(last)
    before = path.read_bytes()
    try:
        path.write_bytes(files.image_png(48, 48))
        with pytest.raises(DataChanged, match=str(path)):
            crops.read(last)
        again = open_source(recipe, root=root)
        hold_files(again, "train", labelled=True)
        assert crops.content() == content
    finally:
        path.write_bytes(before)


# recipes and commands


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["source.data=[game]"], r"source.data: must be one data set, or different ones, got"),
        (["source.data=[game, game]"], r"source.data: must be one data set, or different ones"),
        (["source.data=[game, 7]"], r"source.data\[1\]: must be text, got 7"),
        (["target.data=[game, film]"], "target.data: must be text, got a list"),
        (["source.shares=[1, 1]"], "source.shares: must be left out with one data set, got 2"),
        (
            ["source.data=[game, film]", "source.shares=[1, 2, 3]"],
            "source.shares: must be one for each of the 2 data sets, got 3",
        ),
        (["source.data=[game, film]", "source.shares=[0, 1]"], r"shares\[0\]: must be at least 1"),
        (
            ["source.data=[game, film]", "source.resize_each=[[20, 30]]"],
            "source.resize_each: must be one for each of the 2 data sets, got 1",
        ),
        (["source.data=[game, film]", "source.bits=12"], "source.bits: must be null with several"),
    ],
)
def test_settings_that_do_not_fit_to_the_data_sets_are_refused(words, problem):
    with pytest.raises(RecipeError, match=problem):
        shipped("toyland/source_only", words)


def test_a_recipe_with_several_sources_is_written_out_and_chosen_by_the_first():
    everyday = Overrides(source=["gta5", "synthia"], target="cityscapes")
    words = ["source.resize_each=[[720, 1280], null]", "source.shares=[3, 1]"]
    recipe, path = requested_recipe(words, everyday, "dacs")
    assert path.parent.name == "gta5_cityscapes"
    assert recipe.source.data == ("gta5", "synthia")
    assert recipe.source.sizes == ((720, 1280), None)
    assert recipe.validation.data == "cityscapes"
    assert load(text=dump(recipe)) == recipe
    assert default_run_folder(recipe).name == "gta5+synthia-cityscapes-dacs-s0"
    one, _ = requested_recipe([], Overrides(source=["synthia"]), "dacs")
    assert one.source.data == "synthia"
    assert "shares" not in dump(one)


def train(root, tmp_path):
    """Train two steps on both sets."""
    return udaseg.train(
        "toyland/source_only",
        source=["game", "film"],
        target="game",
        steps=2,
        overrides={
            **{key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in TINY)},
            "source.shares": [1, 1],
            "source.resize_each": [None, [24, 48]],
            "source.crop": [32, 32],
            "target.crop": [32, 32],
            "model.backbone": "timm:test_efficientnet",
            "validation.data": "game",
            "validation.split": "train",
            "machine.checkpoint_every": 1,
        },
        out=tmp_path / "run",
        options=TrainOptions(root=root),
    )


def test_a_run_trains_on_all_of_them_and_resumes(root, tmp_path, capsys, caplog):
    run = train(root, tmp_path)
    whole = tensors(run.path)
    printed = capsys.readouterr().err
    distorted = "3 of 3 film images have another aspect ratio than source.resize_each[1]=[24, 48]"
    assert distorted in caplog.text
    assert "source  game+film: 9 images, 4 classes" in printed
    assert "drawn  6 of game, 3 of film, in turns of 1, 1; not in game: bus; not in film: car" in (
        printed
    )
    assert udaseg.load(run).classes.names == tuple(BOTH)
    assert (
        domain_text(run.recipe.source)
        == "game + film, train, sizes as stored and 48x24, crops of 32x32"
    )
    chosen = udaseg.select(run, options=udaseg.SelectOptions(images=9, root=root, device="cpu"))
    assert chosen.sets.source.dataset.name == "game+film"
    assert all(candidate.values["source"] is not None for candidate in chosen.candidates)
    for name in ("pt", "json"):
        (run.path / f"checkpoints/step-000002.{name}").unlink()
    udaseg.train(options=TrainOptions(root=root, resume=run))
    assert_same(tensors(run.path), whole)
