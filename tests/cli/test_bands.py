"""TIFFs of more than three bands are read with the three that are named, in every command."""

import json
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.cli.running import udaseg
from tests.support import files
from tests.support.colors import loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from tests.support.predicting import ids_of
from tests.support.toy import TINY
from udaseg.data.datasets.index import read_index
from udaseg.data.loading.cache import open_cache
from udaseg.data.open import open_dataset
from udaseg.errors import DataError
from udaseg.inference.run_data import open_run_data
from udaseg.recipe.load import load

rasterio = pytest.importorskip("rasterio")

YAML = """\
name: fields
images: images/*.tif
labels: labels/*.png
classes: [road, sky, car]
bands: [3, 0, 4]
splits: {train: 0.75, val: 0.25}
"""


def write_tiff(path, labels, dtype=np.uint16, **form):
    """Write 5 bands of which 3, 0 and 4 are red, green and blue; the others are noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = painted(labels).transpose(2, 0, 1)
    noise = np.random.default_rng(0).integers(0, 256, (2, *labels.shape), np.uint8)
    bands = np.stack([colors[1], *noise, colors[0], colors[2]])
    values = bands if dtype == np.uint8 else bands.astype(dtype) << 8
    height, width = labels.shape
    size = {"height": height, "width": width, "count": 5, "dtype": np.dtype(dtype).name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", **size, **form) as file:
            file.write(values)
    return labels


@pytest.fixture
def fields(tmp_path):
    for number in range(4):
        labels = random_labels(64, 64, seed=number)
        write_tiff(tmp_path / f"images/{number}.tif", labels)
        files.put(tmp_path / f"labels/{number}.png", files.gray_png(labels))
    return files.dataset_yaml(tmp_path, YAML, "fields.yaml")


def test_prepare_reads_the_bands_of_the_yaml_and_names_the_others(fields, tmp_path):
    out, _ = udaseg("prepare", fields, cwd=tmp_path)
    assert "read with bands 3, 0, 4 as red, green and blue" in out
    assert "0.tif: has 5 bands; left out: 1, 2" in out
    dataset = open_dataset("fields", root=tmp_path / "data")
    assert dataset == read_index(tmp_path / "data/prepared/fields")
    assert dataset.bands == (3, 0, 4)
    sample = dataset.split("train")[0]
    labels = dataset.read_labels(sample)
    assert (dataset.read_image(sample) == painted(labels)).all()
    fields.write_text(YAML.replace("[3, 0, 4]", "[4, 0, 3]"))
    udaseg("prepare", fields, cwd=tmp_path)
    changed = open_dataset("fields", root=tmp_path / "data").read_image(sample)
    assert (changed == painted(labels)[..., ::-1]).all()


def test_bands_that_are_not_named_or_do_not_exist_are_refused_with_what_to_do(fields, tmp_path):
    fields.write_text(YAML.replace("bands: [3, 0, 4]\n", ""))
    _, err = udaseg("prepare", fields, cwd=tmp_path, expect=3)
    assert "TIFF of 5 bands is not read: name three of them: `bands: [0, 1, 2]`" in err
    fields.write_text(YAML.replace("[3, 0, 4]", "[3, 0, 5]"))
    _, err = udaseg("prepare", fields, cwd=tmp_path, expect=3)
    assert "has 5 bands, from 0 to 4, but `bands` names 5" in err
    for wrong in ("[0, 1]", "rgb"):
        fields.write_text(YAML.replace("[3, 0, 4]", wrong))
        _, err = udaseg("prepare", fields, cwd=tmp_path, expect=3)
        assert "must be three whole numbers from 0" in err


@pytest.mark.parametrize("form", [{}, {"interleave": "band"}, {"compress": "deflate"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_predict_takes_the_bands_of_the_option_or_of_the_run(form, dtype, tmp_path, monkeypatch):
    labels = write_tiff(tmp_path / "in/a.tif", random_labels(20, 36), dtype, **form)
    Image.fromarray(painted(labels)).save(tmp_path / "in/b.png")
    replace_load(monkeypatch, lambda path, **_: loaded_colors())
    words = ("predict", "in", "--checkpoint", "runs/a", "--save", "ids", "--device", "cpu")
    assert "TIFF of 5 bands is not read" in udaseg(*words, cwd=tmp_path, expect=4).stderr
    err = udaseg(*words, "--out", "one", "--bands", "3,0,4", cwd=tmp_path).stderr
    assert (
        "TIFFs are read with bands 3, 0, 4 as red, green and blue; other bands are left out" in err
    )
    bands = ["validation.resize=null", "target.bands=[3, 0, 4]"]
    replace_load(monkeypatch, lambda path, **_: loaded_colors(bands))
    udaseg(*words, "--out", "two", cwd=tmp_path)
    for out in ("one", "two"):
        assert json.loads((tmp_path / out / "prediction.json").read_text())["bands"] == [3, 0, 4]
        for name in "ab":
            assert (ids_of(tmp_path / out / f"ids/{name}.png") == labels).all()
    model = loaded_colors(bands)
    assert (model.predict(tmp_path / "in/a.tif").ids == labels).all()
    err = udaseg(*words, "--bands", "3,0", "--out", "x", cwd=tmp_path, expect=2).stderr
    assert "--bands must be three of the bands" in err


def test_a_damaged_file_is_named(fields, tmp_path):
    path = tmp_path / "images/1.tif"
    path.write_bytes(path.read_bytes()[:-900])
    _, err = udaseg("prepare", fields, cwd=tmp_path, expect=3)
    assert "1.tif" in err


def test_doctor_looks_at_the_bands_that_are_read(fields, tmp_path):
    write_tiff(tmp_path / "images/3.tif", random_labels(64, 64, seed=0))  # differs in noise alone
    described = json.loads(udaseg("doctor", fields, "--json", cwd=tmp_path).stdout)
    udaseg("prepare", fields, cwd=tmp_path)
    prepared = json.loads(udaseg("doctor", "fields", "--json", cwd=tmp_path).stdout)
    for found in (described, prepared):
        assert found["ok"]
        assert found["counts"]["error"] == 0
        codes = {each["code"] for each in found["findings"]}
        assert "duplicate" in " ".join(codes), codes
    fields.write_text(YAML.replace("[3, 0, 4]", "[3, 0, 5]"))
    out, err = udaseg("doctor", fields, cwd=tmp_path, expect=3)
    assert "has 5 bands, from 0 to 4, but `bands` names 5" in out + err


def test_a_cache_holds_the_bands_of_the_yaml(fields, tmp_path):
    udaseg("prepare", fields, "--cache", "32x32", cwd=tmp_path)
    dataset = open_dataset("fields", root=tmp_path / "data")
    cache = open_cache(dataset, "train", (32, 32), labelled=True)
    fields.write_text(YAML.replace("[3, 0, 4]", "[4, 0, 3]"))
    assert cache is not None
    image = cache.load_image(dataset.split("train")[0])
    udaseg("prepare", fields, cwd=tmp_path)
    turned = open_dataset("fields", root=tmp_path / "data")
    assert open_cache(turned, "train", (32, 32), labelled=True) is None
    udaseg("prepare", fields, "--cache", "32x32", cwd=tmp_path)
    cache = open_cache(turned, "train", (32, 32), labelled=True)
    assert cache is not None
    assert (cache.load_image(turned.split("train")[0]) == image[..., ::-1]).all()


@pytest.mark.slow
def test_a_run_reads_and_stores_the_bands_of_source_and_target(fields, tmp_path, caplog):
    for number in range(3):
        write_tiff(tmp_path / f"photos/{number}.tif", random_labels(64, 64, seed=number))
    words = ("adapt", "toyland/dacs", "--source", fields, "--target", "photos", "--out", "runs/a")
    small = ("--steps", 2, *TINY)
    _, err = udaseg(*words, *small, cwd=tmp_path, expect=3)
    assert "target.bands=[0,1,2] for a folder" in err
    udaseg(*words, *small, "target.bands=[3, 0, 4]", "--overwrite", cwd=tmp_path)
    recipe = load(tmp_path / "runs/a/recipe.yaml", stored=True)
    assert recipe.source.bands == recipe.target.bands == (3, 0, 4)
    photos = open_run_data(recipe, str(tmp_path / "photos"), root=tmp_path / "data")
    image = photos.read_image(photos.split("train")[0])
    assert (image == painted(random_labels(64, 64, seed=0))).all()
    with pytest.raises(DataError, match="TIFF of 5 bands is not read"):
        folder = open_dataset(str(tmp_path / "photos"), root=tmp_path / "data")
        folder.read_image(folder.split("train")[0])
    with caplog.at_level(logging.INFO):
        udaseg("eval", "runs/a", "--data", fields, cwd=tmp_path)
