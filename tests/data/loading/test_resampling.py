"""Pixels of `resampling: bicubic` are those of the written-out filter; caches and inference too."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import udaseg
from tests.support.small import shipped
from tests.support.toy import toy_pair
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.transforms import resize_image
from udaseg.data.prepare.prepare import _add_cache
from udaseg.errors import UsageError
from udaseg.evaluation.evaluate import open_eval_data
from udaseg.inference.input_images import to_input_image
from udaseg.inference.pipeline import InferenceOptions
from udaseg.inference.predictor import Predictor
from udaseg.training.setup import build_crop_source

SIZE = (23, 51)


def cubic(distance):
    """Keys' kernel with a = -0.5, which is 0 from a distance of 2 pixels."""
    x = np.abs(distance)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(before, after):
    """(after, before): where an axis shrinks, the kernel is as much wider as the pixels are."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    reach = cubic((np.arange(before) + 0.5 - centres[:, None]) / max(scale, 1))
    return reach / reach.sum(1, keepdims=True)


def bicubic(image, size):
    """Columns first, and rounded in between."""
    height, width = image.shape[:2]
    wide = np.einsum("xw,hwc->hxc", weights(width, size[1]), image.astype(np.float64))
    wide = np.clip(np.round(wide), 0, 255)
    tall = np.einsum("yh,hxc->yxc", weights(height, size[0]), wide)
    return np.clip(np.round(tall), 0, 255)


@pytest.mark.parametrize("size", [(40, 60), (23, 51), (90, 131), (200, 40)])
def test_the_filter_is_the_written_out_one(size):
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    difference = np.abs(resize_image(image, size, "bicubic") - bicubic(image, size))
    assert difference.max() <= 1
    assert np.abs(resize_image(image, size) - bicubic(image, size)).max() > 20
    assert resize_image(image, (90, 130), "bicubic") is image


def crops_of(dataset, resampling, *, labelled=True):
    spec = replace(shipped("toyland/rccr").source, resize=SIZE, crop=SIZE, resampling=resampling)
    return build_crop_source(spec, dataset, labelled=labelled)


def test_training_reads_images_by_it_and_labels_by_nearest_neighbour(root):
    source, _ = toy_pair(root)
    sample = source.split("train")[0]
    image, labels = crops_of(source, "bicubic").read(sample)
    assert np.abs(image - bicubic(source.read_image(sample), SIZE)).max() <= 1
    by_area, same = crops_of(source, "area").read(sample)
    assert (image != by_area).any()
    np.testing.assert_array_equal(labels, same)


def test_a_cache_is_taken_only_for_its_own_resampling(root):
    source, _ = toy_pair(root)

    sample = source.split("train")[0]
    plain, _ = crops_of(source, "bicubic").read(sample)
    write_cache(source, SIZE, workers=1)
    assert crops_of(source, "area").cache is not None
    assert crops_of(source, "bicubic").cache is None
    write_cache(source, SIZE, resampling="bicubic", workers=1)
    crops = crops_of(source, "bicubic")
    assert crops.cache is not None
    assert crops.cache.folder.name == "cache-51x23-bicubic"
    cached, _ = crops.read(sample)
    np.testing.assert_array_equal(cached, plain)
    (root / "prepared/toyland/cache-51x23-bicubic/cache.json").unlink()
    assert open_cache(source, "train", SIZE, labelled=True, resampling="bicubic") is None


def test_prepare_writes_a_cache_of_the_resampling_that_is_asked_for(root):
    source, _ = toy_pair(root)
    with pytest.raises(UsageError, match="area, bicubic"):
        udaseg.CacheOptions(SIZE, resampling="nearest")
    options = udaseg.CacheOptions(SIZE, "png", "bicubic")
    report = SimpleNamespace(name="toyland", dataset=source, samples=source.split("train"))
    _add_cache(report, options, 1)
    assert report.cache.cache.resampling == "bicubic"


def test_inference_reads_images_like_those_of_the_target(root):
    recipe = shipped("toyland/rccr")
    recipe = replace(
        recipe,
        target=replace(recipe.target, resampling="bicubic"),
        validation=replace(recipe.validation, resize=SIZE),
    )
    dataset, options = open_eval_data(recipe, "toyland-target", InferenceOptions(), root)
    assert (options.resampling, options.resize) == ("bicubic", SIZE)
    image = dataset.read_image(dataset.split("val")[0])
    predictor = Predictor(None, dataset.classes, SIZE, None, resampling="bicubic")
    prepared = predictor.prepare(to_input_image(image)).network_input
    expected = bicubic(image, prepared.shape[:2])
    assert np.abs(prepared - expected).max() <= 1
