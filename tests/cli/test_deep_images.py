"""16-bit images of 12-bit cameras give the same results as 8-bit copies, in every command."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.running import udaseg
from tests.support import files
from tests.support.colors import loaded_colors, painted, random_labels
from tests.support.toy import TINY
from udaseg import EvaluationOptions, PredictOptions, evaluate, predict
from udaseg.data.datasets.index import read_index
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.errors import DataError
from udaseg.inference.run_data import open_run_data
from udaseg.recipe.load import load
from udaseg.selection.candidates import open_evaluation_sets

YAML = """\
name: city
images: images/*.png
labels: labels/*.png
classes: [a, b, c]
splits: {train: 0.75, val: 0.25}
"""
SIZE = (64, 96)


def deep(pixels, bits=12):
    """Return the 16-bit PNG of which 8-bit pixels are the upper bits."""
    noise = np.random.default_rng(0).integers(0, 2 ** (bits - 8), pixels.shape)
    return files.deep_png((pixels.astype(np.uint16) << (bits - 8)) + noise.astype(np.uint16))


def plain(pixels):
    return files.coded(Image.fromarray(pixels), "PNG")


def home_of(folder, form):
    """Write a labelled city and a folder of photos in a form, and prepare the city."""
    for number in range(4):
        files.put(folder / f"city/images/{number}.png", form(files.noise(*SIZE, number)))
        ids = np.kron(np.random.default_rng(number).integers(0, 3, (8, 12)), np.ones((8, 8), int))
        files.put(folder / f"city/labels/{number}.png", files.gray_png(ids))
        files.put(folder / f"photos/{number}.png", form(files.noise(*SIZE, 10 + number)))
    files.dataset_yaml(folder / "city", YAML, "city.yaml")
    return folder


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Return two homes with a run of two steps each: of 8 bits, and of 12."""
    return [
        adapted(home_of(tmp_path_factory.mktemp(name), form))
        for name, form in (("plain", plain), ("deep", deep))
    ]


def adapted(home):
    data = ("--source", "city/city.yaml", "--target", "photos", "--out", "runs/a")
    udaseg("adapt", "toyland/dacs", *data, "--steps", 2, *TINY, cwd=home)
    return home


def weights(home):
    path = home / "runs/a/checkpoints/step-000002.pt"
    return torch.load(path, weights_only=True)["objective"]


def test_a_run_on_12_bits_is_that_on_8_bits(homes):
    before, after = map(weights, homes)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_stores_the_bits_that_its_images_use(homes):
    for home, bits in zip(homes, (None, 12), strict=True):
        recipe = load(home / "runs/a/recipe.yaml", stored=True)
        assert (recipe.source.bits, recipe.target.bits) == (bits, bits)
        stored = torch.load(home / "runs/a/checkpoints/step-000002.pt", weights_only=True)["recipe"]
        assert stored["target"]["bits"] == bits
        assert read_index(home / "data/prepared/city").bits == (bits or 0)


@pytest.mark.slow
def test_the_plan_and_prepare_say_how_16_bits_are_read(homes):
    plan = ("--source", "city/city.yaml", "--target", "photos", "--dry-run", *TINY)
    for home, said in zip(homes, (0, 2), strict=True):
        text = udaseg("adapt", "toyland/dacs", *plan, cwd=home).stderr
        assert text.count("16-bit images read as 12 bits, 0 to 4095") == said
        table = udaseg("prepare", "city/city.yaml", cwd=home).stdout
        assert ("read as 12 bits, 0 to 4095" in table) == bool(said)


@pytest.mark.parametrize(
    "command", [("eval", "--data", "city/city.yaml"), ("calibrate",), ("select", "--images", 2)]
)
def test_every_command_of_a_run_gives_what_it_gives_on_8_bits(homes, command):
    name, *words = command
    outputs = [udaseg(name, "runs/a", *words, cwd=home).stdout for home in homes]
    assert outputs[0] == outputs[1]
    assert outputs[0]


def test_predict_takes_the_bits_of_the_run(homes, tmp_path):
    masks = [tmp_path / "plain", tmp_path / "deep"]
    for home, out in zip(homes, masks, strict=True):
        said = udaseg(
            "predict",
            "photos",
            "--checkpoint",
            "runs/a",
            "--out",
            out,
            "--save",
            "ids,logits",
            cwd=home,
        )
        assert "--bits" not in said.stderr
    for one in sorted(masks[0].rglob("*.npy")):
        other = np.load(masks[1] / one.relative_to(masks[0]))
        np.testing.assert_array_equal(np.load(one), other)
    assert json.loads((masks[1] / "prediction.json").read_text())["bits"] == 12


@pytest.mark.slow
def test_resume_and_another_target(homes):
    home = homes[1]
    udaseg("adapt", "--resume", "runs/a", cwd=home)
    for path in (home / "photos").iterdir():
        files.put(home / "others" / path.name, deep(files.noise(*SIZE, 3), 10))
    words = ("--target", "others", "--out", "runs/b", "--dry-run", *TINY)
    plan = udaseg("adapt", home / "runs/a/recipe.yaml", *words, cwd=home).stderr
    assert "images, labels unused; 16-bit images read as 10 bits" in plan
    plan = udaseg("adapt", home / "runs/a/recipe.yaml", *words, "target.bits=16", cwd=home).stderr
    assert "images, labels unused; 16-bit images read as 16 bits" in plan


def test_a_value_above_the_bits_of_the_run_is_a_named_failure(homes, tmp_path):
    home = homes[1]
    files.put(tmp_path / "photos/dark.png", deep(files.noise(*SIZE, 3)))
    files.put(tmp_path / "photos/bright.png", deep(files.noise(*SIZE, 3), 16))
    words = ("--checkpoint", "runs/a", "--out", tmp_path / "masks")
    said = udaseg("predict", tmp_path / "photos", *words, cwd=home, expect=4).stderr
    assert "bright.png: its values reach 65" in said
    assert "16-bit images are read as 12 bits here, at most 4095" in said
    assert (tmp_path / "masks/ids/dark.png").exists()
    words = ("--checkpoint", "runs/a", "--out", tmp_path / "all", "--bits", 16)
    udaseg("predict", tmp_path / "photos", *words, cwd=home)


@pytest.mark.parametrize(
    ("bits", "found"), [(8, 8), (10, 10), (12, 12), (13, 16), (14, 16), (16, 16)]
)
def test_prepare_decides_once_for_the_whole_set(tmp_path, bits, found):
    home = home_of(tmp_path, lambda pixels: deep(pixels // 4))
    files.put(home / "city/images/2.png", deep(files.noise(*SIZE, 2), bits))
    dataset = prepare_dataset(str(home / "city/city.yaml"), root=home).dataset
    expected = found if bits > 10 else 10  # the others have 10 bits
    assert dataset.bits == read_index(dataset.folder).bits == expected
    again = prepare_dataset(str(home / "city/city.yaml"), root=home)
    assert again.unchanged
    assert again.dataset.bits == expected


def test_the_yaml_overrides_what_prepare_would_decide(tmp_path):
    home = home_of(tmp_path, deep)
    prepare_dataset(str(home / "city/city.yaml"), root=home)
    yaml = files.dataset_yaml(home / "city", YAML + "bits: 14\n", "city.yaml")
    dataset = prepare_dataset(str(yaml), root=home).dataset
    (sample,) = dataset.split("val")
    assert dataset.bits == 14
    number = int(Path(sample.image).stem)
    assert (
        abs(int(dataset.read_image(sample).max()) - int(files.noise(*SIZE, number).max()) // 4) <= 1
    )
    yaml = files.dataset_yaml(home / "city", YAML + "bits: 10\n", "city.yaml")
    with pytest.raises(
        DataError, match=r"none of the 4 files can be used(.|\n)*0\.png: its values reach 4\d+"
    ):
        prepare_dataset(str(yaml), root=home)
    files.dataset_yaml(home / "city", YAML + "bits: 17\n", "city.yaml")
    with pytest.raises(DataError, match="bits: must be a whole number from 8 to 16"):
        prepare_dataset(str(yaml), root=home)


def test_what_an_image_becomes_does_not_depend_on_its_neighbours(tmp_path, caplog):
    labels = random_labels(*SIZE)
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        files.put(folder / "a.png", deep(painted(labels)))
    files.put(together / "b.png", deep(painted(labels), 16))
    model = loaded_colors()
    with caplog.at_level(logging.WARNING):
        images = {
            folder: next(iter(predict(folder / "a.png", model))).image
            for folder in (alone, together)
        }
    np.testing.assert_array_equal(images[alone], images[together])
    assert images[alone].max() == 15


@pytest.mark.parametrize("written", [True, False])
def test_a_run_that_knows_no_bits_warns_of_nearly_black_images(tmp_path, caplog, written):
    out = tmp_path / "masks" if written else None
    files.put(tmp_path / "in/a.png", deep(painted(random_labels(*SIZE))))
    files.put(tmp_path / "in/b.png", plain(painted(random_labels(*SIZE))))
    model = loaded_colors()

    def warnings(**how):
        caplog.clear()
        result = predict(
            tmp_path / "in", model, out=out, options=PredictOptions(overwrite=True, **how)
        )
        assert written or list(result)
        return [text for text in caplog.messages if "--bits" in text]

    (said,) = warnings()
    assert "no value of the 1 16-bit images is above 4095" in said
    assert "predict them again with --bits 12" in said
    assert warnings(bits=12) == warnings(bits=16) == []
    files.put(tmp_path / "in/c.png", deep(painted(random_labels(*SIZE)), 16))
    assert warnings() == []


def test_scores_and_masks_are_those_of_the_8_bit_twin(tmp_path):
    scores = []
    for name, form in (("plain", plain), ("deep", deep)):
        home = home_of(tmp_path / name, form)
        for path in (home / "city/labels").iterdir():
            labels = np.asarray(Image.open(path))
            files.put(home / "city/images" / path.name, form(painted(labels)))
        files.dataset_yaml(
            home / "city", YAML.replace("[a, b, c]", "[road, sky, car]"), "city.yaml"
        )
        prepare_dataset(str(home / "city/city.yaml"), root=home)
        options = EvaluationOptions(root=home)
        scores.append(
            evaluate(loaded_colors(), data=str(home / "city/city.yaml"), options=options).miou
        )
    assert scores == [1.0, 1.0]


def test_own_data_is_read_by_the_run_and_other_data_by_what_prepare_found(tmp_path):
    home = home_of(tmp_path, deep)
    yaml = str(home / "city/city.yaml")
    photos = str(home / "photos")

    def bits(data, *overrides):
        recipe = loaded_colors([f"target.data={photos}", f"source.data={yaml}", *overrides]).recipe
        return open_run_data(recipe, data, root=home).bits

    assert bits(yaml) == 12
    assert bits(photos) is None
    assert bits(photos, "target.bits=14") == 14
    assert bits(photos, "source.bits=12") == 12
    assert bits(yaml, "target.bits=14") == 12
    assert bits(yaml, "source.bits=13") == 13
    assert open_dataset(photos, root=home).bits is None
    recipe = loaded_colors(
        [f"target.data={photos}", f"source.data={yaml}", "target.bits=14"]
    ).recipe
    sets = open_evaluation_sets(recipe, None, None, 2, oracle=False, root=home)
    assert (sets.target.dataset.bits, sets.source.dataset.bits) == (14, 12)
