"""Colour jitter and blur: known answers, ranges, and which images they apply to."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tests.methods.test_self_training import _batch
from tests.support.small import shipped, small_segmenter
from udaseg.methods.augmentation import color_jitter, gaussian_blur, strong_augment
from udaseg.methods.build import build_objective
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.recipe.methods import SourceJitter, StrongAugmentation
from udaseg.recipe.stages import stages_of


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _images(count=3, side=12):
    return torch.rand(count, 3, side, side, generator=_generator(9))


@pytest.mark.parametrize("sigma", [0.15, 0.7, 1.15])
def test_blur_equals_opencvs(sigma):
    image = torch.rand(1, 3, 33, 47, generator=_generator())
    expected = cv2.GaussianBlur(
        image[0].permute(1, 2, 0).numpy(), (11, 11), sigma, borderType=cv2.BORDER_REPLICATE
    )
    assert np.abs(gaussian_blur(image, sigma)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def _augment(images, seed, **changes):
    spec = StrongAugmentation(0.25, 0.8, 0.5, (0.15, 1.15))
    return strong_augment(images, _generator(seed), replace(spec, **changes))


def test_strong_augmentation_is_a_function_of_its_generator_and_stays_in_range():
    images = torch.rand(2, 3, 16, 16, generator=_generator())
    before = images.clone()
    assert torch.equal(_augment(images, 1), _augment(images, 1))
    assert not torch.equal(_augment(images, 1), _augment(images, 2))
    assert torch.equal(images, before), "the input was changed"
    for seed in range(10):
        augmented = _augment(images, seed)
        assert augmented.min() >= 0
        assert augmented.max() <= 1 + 1e-6


def test_strong_augmentation_happens_as_often_as_asked():
    images = torch.rand(1, 3, 8, 8, generator=_generator())
    assert torch.equal(_augment(images, 0, jitter_probability=0.0, blur_probability=0.0), images)
    changed = [
        not torch.equal(_augment(images, seed, blur_probability=0.0), images) for seed in range(200)
    ]
    assert 140 < sum(changed) < 180


def test_jitter_of_no_strength_changes_nothing():
    images = _images()
    same = color_jitter(images, _generator(), SourceJitter(0.0, 0.0))
    assert torch.allclose(same, images, atol=1e-5)


def test_jitter_is_drawn_for_each_image_alone_and_stays_in_range():
    images = _images(1).expand(4, -1, -1, -1).clone()
    for seed in range(10):
        jittered = color_jitter(images, _generator(seed), SourceJitter(0.5, 0.2))
        assert jittered.min() >= 0
        assert jittered.max() <= 1 + 1e-6
        assert len({round(float(image.sum()), 4) for image in jittered}) == 4
        again = color_jitter(images, _generator(seed), SourceJitter(0.5, 0.2))
        assert torch.equal(jittered, again)


def test_hue_turns_colours_and_leaves_grey_alone():
    grey = torch.full((1, 3, 4, 4), 0.4)
    assert torch.allclose(color_jitter(grey, _generator(), SourceJitter(0.0, 0.5)), grey, atol=1e-5)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1.0
    turned = color_jitter(red, _generator(), SourceJitter(0.0, 0.2))
    assert turned.amax() == pytest.approx(1.0, abs=1e-4), "hue keeps the value"
    assert not torch.allclose(turned, red, atol=1e-2)


def test_an_objective_jitters_the_source_of_a_step_and_only_when_it_is_told_to():
    objective, batch = SourceOnly(small_segmenter(projector=False)), _batch()
    plain = objective.source_images(batch)
    assert torch.equal(plain, batch.source_images.float() / 255)
    objective.source_jitter = SourceJitter(0.5, 0.2)
    jittered = objective.source_images(batch)
    assert torch.equal(jittered, objective.source_images(batch))
    assert not torch.allclose(jittered, plain, atol=1e-2)
    other = objective.source_images(_batch(step=1))
    assert not torch.equal(other, jittered)


def test_spcl_jitters_the_source_in_its_two_stages_that_see_one():
    recipe = shipped("toyland/spcl")
    jitters = [
        build_objective(recipe, 13, stage=stage).source_jitter for stage in stages_of(recipe)
    ]
    assert jitters == [SourceJitter(0.5, 0.2), SourceJitter(0.5, 0.2), None]
