"""Colour jitter and blur: torchvision's and OpenCV's answers, and which images they apply to."""

import colorsys
import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as transforms

from tests.methods.test_self_training import _batch
from tests.support.small import shipped, small_segmenter
from udaseg.methods import augmentation
from udaseg.methods.augmentation import (
    Change,
    change_images,
    color_jitter,
    gaussian_blur,
    gaussian_taps,
    strong_augment,
)
from udaseg.methods.build import build_objective
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.recipe.methods import ColorJitter, StrongAugmentation
from udaseg.recipe.stages import stages_of


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _images(count=3, side=12):
    return torch.rand(count, 3, side, side, generator=_generator(9))


_SPEC = StrongAugmentation(0.25, 0.8, 0.5, (0.15, 1.15))
_ADJUST = (
    transforms.adjust_brightness,
    transforms.adjust_contrast,
    transforms.adjust_saturation,
    transforms.adjust_hue,
)


def _alone(image, change):
    """Return one (3, H, W) image as torchvision and OpenCV change it."""
    for kind, amount in change.adjustments:
        image = _ADJUST[kind](image, amount)
    if change.sigma is not None:
        pixels, border = image.permute(1, 2, 0).numpy(), cv2.BORDER_REPLICATE
        blurred = cv2.GaussianBlur(pixels, (11, 11), change.sigma, borderType=border)
        image = torch.from_numpy(blurred).permute(2, 0, 1)
    return image


def as_kornia(image, adjustments, sigma):
    """Return one (3, H, W) image after kornia 0.4's operations, by pixel, in float64."""
    pixels = image.permute(1, 2, 0).double().numpy()
    for kind, amount in adjustments:
        if kind == augmentation.BRIGHTNESS:
            pixels = pixels + (amount - 1)
        elif kind == augmentation.CONTRAST:
            pixels = pixels * amount
        else:
            hsv = np.apply_along_axis(lambda pixel: colorsys.rgb_to_hsv(*pixel), 2, pixels)
            if kind == augmentation.SATURATION:
                hsv[..., 1] = (hsv[..., 1] * amount).clip(0, 1)
            else:
                hsv[..., 0] = (hsv[..., 0] + amount) % 1
            pixels = np.apply_along_axis(lambda pixel: colorsys.hsv_to_rgb(*pixel), 2, hsv)
        pixels = pixels.clip(0, 1)
    if sigma is not None:
        border = cv2.BORDER_REFLECT_101  # the edge itself is not repeated
        pixels = cv2.GaussianBlur(pixels, (11, 11), sigma, borderType=border)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("together", [False, True])
def test_kornias_operations_in_random_orders_with_mirrored_edges(together):
    numbers = np.random.default_rng(3)
    images = torch.rand(6, 3, 9, 8, generator=_generator())
    images[0] = (images[0] * 2).round() / 2  # equal channels, black, white, full colours
    images[1] = images[1, :1]  # grey
    changes = [_random_change(numbers, sigma=sigma) for sigma in (None, 0.5, 1.15, None, None, 0.8)]
    changes[4] = Change([], None)
    changed = change_images(images, changes, together=together, kind="kornia_0_4")
    expected = torch.stack(
        [as_kornia(image, *each) for image, each in zip(images, changes, strict=True)]
    )
    assert (changed - expected).abs().max() < 1e-5
    assert torch.equal(changed[4], images[4])
    other = change_images(images, changes, together=together)
    assert (other - expected).abs().amax((1, 2, 3)).gt(0.05)[[0, 2, 3, 5]].all()


def _random_change(numbers, order=None, *, strength=0.5, jitter=True, sigma=None):
    amounts = [*numbers.uniform(1 - strength, 1 + strength, 3), numbers.uniform(-0.5, 0.5)]
    order = numbers.permutation(4) if order is None else order
    return Change([(int(kind), float(amounts[kind])) for kind in order] if jitter else [], sigma)


@pytest.mark.parametrize("convolve", [False, True])
def test_blur_equals_opencvs_with_a_width_for_each_image(convolve):
    images = torch.rand(3, 3, 33, 47, generator=_generator())
    changes = [Change([], sigma) for sigma in (0.15, 0.7, 1.15)]
    taps = torch.tensor([gaussian_taps(change.sigma) for change in changes])
    blurred = gaussian_blur(images, taps, convolve=convolve)
    expected = torch.stack([_alone(*each) for each in zip(images, changes, strict=True)])
    assert (blurred - expected).abs().max() < 1e-5


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_jitter_equals_torchvisions_in_every_order(together, strength):
    numbers, orders = np.random.default_rng(0), list(itertools.permutations(range(4)))
    images = torch.rand(len(orders), 3, 16, 24, generator=_generator())
    images[::3] = (images[::3] * 2).round() / 2  # equal channels, black, white, full colours
    images[1::6] = images[1::6, :1]  # grey
    images[4::6] = images[4::6, :1] + 1e-6 * images[4::6]  # nearly
    for first in range(0, len(orders), 6):
        part = images[first : first + 6].clamp(0, 1)
        changes = [_random_change(numbers, o, strength=strength) for o in orders[first : first + 6]]
        changed = change_images(part, changes, together=together)
        expected = torch.stack([_alone(*each) for each in zip(part, changes, strict=True)])
        # torchvision's hue is itself off by 1e-6, and later factors are up to 2
        assert (changed - expected).abs().max() < 3e-6


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_each_image_gets_its_own_change_and_one_without_keeps_its_bits(together, layout):
    numbers = np.random.default_rng(1)
    images = _images(5, 20).contiguous(memory_format=layout)
    before = images.clone()
    changes = [
        _random_change(numbers),
        _random_change(numbers, jitter=False),
        _random_change(numbers, sigma=1.0),
        _random_change(numbers, jitter=False, sigma=0.5),
        _random_change(numbers, jitter=False),
    ]
    changed = change_images(images, changes, together=together)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    for image, same, change in zip(changed, images, changes, strict=True):
        assert (image - _alone(same, change)).abs().max() < 1e-5
    assert torch.equal(changed[[1, 4]], images[[1, 4]])
    assert torch.equal(images, before), "the input was changed"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(change_images(images, changes, together=together), changed)


def _drawn(seed, count, spec):
    """Return the changes of `count` images, drawn as the first release of udaseg did."""
    generator = _generator(seed)
    changes = []
    for _ in range(count):
        draws = torch.rand(8, generator=generator).tolist()
        amounts = [1 + spec.jitter * (2 * draw - 1) for draw in draws[1:4]]
        amounts.append(spec.jitter * (2 * draws[4] - 1))
        order = torch.randperm(4, generator=generator).tolist()
        low, high = spec.blur_sigma
        jittered, blurred = draws[0] < spec.jitter_probability, draws[5] < spec.blur_probability
        sigma = low + (high - low) * draws[6] if blurred else None
        changes.append(Change([(kind, amounts[kind]) for kind in order] if jittered else [], sigma))
    return changes


@pytest.mark.parametrize("rank", [0, 1])
def test_a_seed_gives_each_image_of_all_ranks_its_numbers(monkeypatch, rank):
    part = slice(2 * rank, 2 * rank + 2)
    monkeypatch.setattr(augmentation, "slice_for_rank", lambda count: (2 * count, part))
    images = _images(4)[part]
    for seed in range(10):
        expected = change_images(images, _drawn(seed, 4, _SPEC)[part], together=False)
        assert torch.equal(strong_augment(images, _generator(seed), _SPEC), expected)


def test_the_jitter_of_the_source_draws_four_numbers_and_an_order_for_each_image():
    images, numbers = _images(), _generator(7)
    for image, jittered in zip(
        images, color_jitter(images, _generator(7), ColorJitter(0.5, 0.2)), strict=True
    ):
        draws = torch.rand(4, generator=numbers).tolist()
        amounts = [*(1 + 0.5 * (2 * draw - 1) for draw in draws[:3]), 0.2 * (2 * draws[3] - 1)]
        order = torch.randperm(4, generator=numbers).tolist()
        change = Change([(kind, amounts[kind]) for kind in order], None)
        assert (jittered - _alone(image, change)).abs().max() < 3e-6


class _Operations(TorchDispatchMode):
    """Lists the operations on a device that have a kernel; views and allocations have none."""

    def __init__(self, device):
        super().__init__()
        self.device, self.names = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        parts = made if isinstance(made, (tuple, list)) else [made]
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        free = func.is_view or "empty" in func.__name__
        if not free and any(part.device.type == self.device for part in tensors):
            self.names.append(func.__name__)
        return made


@pytest.mark.parametrize("count", [2, 16])
def test_on_a_gpu_all_images_take_at_most_70_operations_and_one_copy(monkeypatch, count):
    monkeypatch.setattr(augmentation, "to_device", torch.Tensor.to)
    numbers = np.random.default_rng(2)
    changes = [_random_change(numbers, order, sigma=1.0) for order in ((3, 0, 1, 2), (0, 1, 2, 3))]
    changes[1:] = [*changes[1:], *[_random_change(numbers, jitter=False)] * (count - 2)]
    with FakeTensorMode(), _Operations("cuda") as operations:
        images = torch.empty(count, 3, 64, 64, device="cuda")
        changed = change_images(images, changes, together=True)
    assert changed.shape == images.shape
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert len(operations.names) <= 70
    assert operations.names.count("_to_copy.default") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_once_a_batch_the_first_image_decides_for_all_ranks(monkeypatch, rank):
    part = slice(2 * rank, 2 * rank + 2)
    monkeypatch.setattr(augmentation, "slice_for_rank", lambda count: (2 * count, part))
    images, spec, met = _images(4)[part], replace(_SPEC, per="batch", jitter_probability=0.5), set()
    for seed in range(20):
        always = _drawn(seed, 4, replace(_SPEC, jitter_probability=1.0, blur_probability=1.0))
        first = _drawn(seed, 4, spec)[0]
        expected = [
            Change(each.adjustments if first.adjustments else [], first.sigma and each.sigma)
            for each in always[part]
        ]
        met.add((bool(first.adjustments), first.sigma is not None))
        assert torch.equal(
            strong_augment(images, _generator(seed), spec),
            change_images(images, expected, together=False),
        )
    assert len(met) == 4


def _augment(images, seed, **changes):
    return strong_augment(images, _generator(seed), replace(_SPEC, **changes))


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
    same = color_jitter(images, _generator(), ColorJitter(0.0, 0.0))
    assert torch.allclose(same, images, atol=1e-5)


def test_jitter_is_drawn_for_each_image_alone_and_stays_in_range():
    images = _images(1).expand(4, -1, -1, -1).clone()
    for seed in range(10):
        jittered = color_jitter(images, _generator(seed), ColorJitter(0.5, 0.2))
        assert jittered.min() >= 0
        assert jittered.max() <= 1 + 1e-6
        assert len({round(float(image.sum()), 4) for image in jittered}) == 4
        again = color_jitter(images, _generator(seed), ColorJitter(0.5, 0.2))
        assert torch.equal(jittered, again)


def test_hue_turns_colours_and_leaves_grey_alone():
    grey = torch.full((1, 3, 4, 4), 0.4)
    assert torch.allclose(color_jitter(grey, _generator(), ColorJitter(0.0, 0.5)), grey, atol=1e-5)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1.0
    turned = color_jitter(red, _generator(), ColorJitter(0.0, 0.2))
    assert turned.amax() == pytest.approx(1.0, abs=1e-4), "hue keeps the value"
    assert not torch.allclose(turned, red, atol=1e-2)


def test_an_objective_jitters_a_domain_only_when_it_is_told_to():
    objective, batch = SourceOnly(small_segmenter(projector=False)), _batch()
    plain = objective.source_images(batch)
    assert torch.equal(plain, batch.source_images.float() / 255)
    objective.source_jitter = ColorJitter(0.5, 0.2)
    jittered = objective.source_images(batch)
    assert torch.equal(jittered, objective.source_images(batch))
    assert not torch.allclose(jittered, plain, atol=1e-2)
    other = objective.source_images(_batch(step=1))
    assert not torch.equal(other, jittered)
    assert torch.equal(objective.target_images(batch), batch.target_images.float() / 255)
    objective.target_jitter, objective.source_jitter = objective.source_jitter, None
    assert torch.equal(objective.source_images(batch), plain)
    target = batch.target_images.float() / 255
    assert not torch.allclose(objective.target_images(batch), target, atol=1e-2)


@pytest.mark.parametrize("name", ["spcl", "spcl_release"])
def test_spcl_jitters_the_source_where_there_is_one_and_else_the_target(name):
    recipe = shipped(f"toyland/{name}")
    objectives = [build_objective(recipe, 13, stage=stage) for stage in stages_of(recipe)]
    jitter = ColorJitter(0.5, 0.2)
    assert [each.source_jitter for each in objectives] == [jitter, jitter, None]
    assert [each.target_jitter for each in objectives] == [None, None, jitter]
