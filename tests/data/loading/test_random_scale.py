"""`source.scale` and `target.scale`: images of many sizes, whose labels stay with their pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cli.running import udaseg as command
from tests.support.small import shipped
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.inspection.info import domain_text
from udaseg.recipe.methods import StageTarget
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import stages_of
from udaseg.training.setup import build_batches


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy_pair(toy_root(tmp_path_factory.mktemp("toy")))


def scaled(pair, source, target) -> tuple[Recipe, list]:
    words = [*TINY, f"source.scale={source}", f"target.scale={target}", "target.flip=false"]
    recipe = shipped("toyland/dacs", [*words, "source.flip=false"])
    return recipe, build_batches(recipe, *pair)


def occurs(window, images) -> bool:
    """Return whether a window (h, w, ...) is a part of one of the images, pixel for pixel."""
    height, width = window.shape[:2]
    for image in images:
        starts = np.argwhere((image == window[0, 0]).reshape(*image.shape[:2], -1).all(2))
        for top, left in starts:
            part = image[top : top + height, left : left + width]
            if part.shape == window.shape and (part == window).all():
                return True
    return False


def test_crops_are_parts_of_the_enlarged_images_and_labels(pair):
    recipe, batches = scaled(pair, [2, 2], [1.5, 1.5])
    read = [batches.source.read(sample) for sample in batches.source.samples]
    labels = [resize_labels(label, (128, 256)) for _, label in read]
    images = [batches.target.read(sample)[0] for sample in batches.target.samples]
    images = [resize_image(image, (96, 192)) for image in images]
    for step in range(3):
        for label in batches[step].source_labels.to(torch.uint8).numpy():
            assert occurs(label, labels)
        for image in batches[step].target_images.movedim(1, -1).numpy():
            assert occurs(image, images)
    assert "enlarged by 2 to 2, crops of 64x64" in domain_text(recipe.source)


def test_factors_are_drawn_for_each_image_and_by_default_none_is(pair):
    _, batches = scaled(pair, [0.5, 1], [1, 1])
    labels = [label for step in range(2) for label in batches[step].source_labels]
    assert len({int((label == 255).sum()) for label in labels}) == 4  # images of 64 rows or fewer
    plain = shipped("toyland/dacs")
    assert plain.source.scale == plain.target.scale == (1.0, 1.0)
    assert "enlarged" not in domain_text(plain.source)


def test_a_stage_has_a_scale_of_its_own(pair):
    recipe, _ = scaled(pair, [1, 1], [3, 3])
    (stage,) = stages_of(recipe)
    own = StageTarget(resize=None, crop=(128, 256), scale=(2, 2), flip=False, batch=1)
    batches = build_batches(recipe, *pair, replace(stage, target=own))
    images = [batches.target.read(sample)[0] for sample in batches.target.samples]
    assert occurs(
        batches[0].target_images[0].movedim(0, -1).numpy(),
        [resize_image(image, (128, 256)) for image in images],
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("source.scale=[2, 1]", "source.scale: must be [LOWEST, HIGHEST], got [2.0, 1.0]"),
        ("target.scale=[1, 20]", "target.scale[1]: must be"),
        ("target.scale=[0, 1]", "target.scale[0]: must be"),
        ("source.scale=1.5", "source.scale: must be"),
        ("validation.scale=[1, 2]", "validation.scale: unknown key"),
    ],
)
def test_wrong_ranges_are_refused(tmp_path, word, says):
    error = command("adapt", "toyland/dacs", "--dry-run", word, cwd=tmp_path, expect=2).stderr
    assert says in error
