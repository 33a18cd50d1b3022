"""ClassMix, CutMix squares and the strong augmentation, on small hand-made maps and over seeds."""

import math

import numpy as np
import pytest
import torch

from udaseg.data.labels.classes import IGNORE
from udaseg.methods.mixing import (
    balanced_crop,
    cells_to_pixels,
    class_mask,
    paste,
    square_mask,
)
from udaseg.recipe.methods import TargetCrop


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ignore_is_class", [False, True])
def test_the_classes_with_the_smallest_numbers_are_chosen(ignore_is_class):
    for seed in range(50):
        labels = torch.randint(0, 7, (4, 3, 3), generator=_generator(seed)).to(torch.uint8)
        labels[0, :2], labels[1] = IGNORE, seed % 7
        numbers = torch.rand((4, 8), generator=_generator(seed))
        mask = class_mask(labels, 7, _generator(seed), ignore_is_class=ignore_is_class)
        for label, number, chosen in zip(labels, numbers, mask, strict=True):
            present = [c for c in label.unique().tolist() if c != IGNORE or ignore_is_class]
            present.sort(key=lambda c: number[min(c, 7)])
            half = torch.tensor(present[: -(-len(present) // 2)], dtype=torch.uint8)
            assert torch.equal(chosen, torch.isin(label, half))


def test_a_mask_of_cells_is_a_contiguous_mask_of_pixels():
    cells = torch.rand(2, 3, 4, generator=_generator()) < 0.5
    pixels = cells_to_pixels(cells, (7, 10), 3)
    assert pixels.is_contiguous(), "a device takes other layouts from pageable memory"
    rows, columns = torch.arange(7) // 3, torch.arange(10) // 3
    assert torch.equal(pixels, cells[:, rows[:, None], columns])


@pytest.mark.parametrize("seed", range(20))
def test_half_of_each_images_classes_is_pasted_whole_and_void_is_not(seed):
    labels = torch.randint(0, 7, (3, 12, 14), generator=_generator(seed)).to(torch.uint8)
    labels[:, :2] = IGNORE
    mask = class_mask(labels, 7, _generator(seed), ignore_is_class=False)
    for label, chosen in zip(labels, mask, strict=True):
        classes = [c for c in label.unique().tolist() if c != IGNORE]
        pasted = [c for c in classes if chosen[label == c].any()]
        assert len(pasted) == -(-len(classes) // 2)
        assert all(chosen[label == c].all() for c in pasted), "a class was cut"
        assert not chosen[label == IGNORE].any()


def test_void_may_be_pasted_in_the_released_form():
    labels = torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    assert class_mask(labels, 3, _generator(), ignore_is_class=True).all()
    assert not class_mask(labels, 3, _generator(), ignore_is_class=False).any()
    labels[:, :, :2] = 1
    pasted = [
        class_mask(labels, 3, _generator(seed), ignore_is_class=True)[0, 0, 3].item()
        for seed in range(40)
    ]
    assert 8 < sum(pasted) < 32


def test_each_class_is_chosen_equally_often():
    labels = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    counts = torch.zeros(2, 2)
    for seed in range(400):
        counts += class_mask(labels, 4, _generator(seed), ignore_is_class=False)[0]
    assert (counts - 200).abs().max() < 50


def test_paste_moves_images_and_labels_alike():
    mask = torch.tensor([[[True, False]]])
    assert paste(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))[0, 0].tolist() == [[1, 0]]
    assert paste(mask, torch.tensor([[[5, 6]]]), torch.tensor([[[7, 8]]])).tolist() == [[[5, 8]]]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("size", "stride"), [((64, 64), 8), ((90, 120), 16), ((8, 8), 16)])
def test_squares_are_whole_cells_inside_the_image(seed, size, stride):
    if min(size) < stride:
        with pytest.raises(ValueError, match="smaller than one cell"):
            square_mask(2, size, stride, _generator(seed), per="image")
        return
    mask = square_mask(2, size, stride, _generator(seed), per="image")
    assert mask.shape == (2, -(-size[0] // stride), -(-size[1] // stride))
    for image in mask:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        height, width = len(rows), len(columns)
        assert height == width >= 1
        assert image.sum() == height * width
        assert (rows[-1] + 1) * stride <= size[0]
        assert (columns[-1] + 1) * stride <= size[1]
    pixels = cells_to_pixels(mask, size, stride)
    assert pixels.shape == (2, *size)
    assert pixels.sum() == mask.sum() * stride * stride


def test_one_square_a_batch_or_one_an_image():
    same = square_mask(4, (256, 256), 8, _generator(), per="batch")
    per_image = square_mask(4, (256, 256), 8, _generator(), per="image")
    assert all(torch.equal(same[0], image) for image in same)
    assert any(not torch.equal(per_image[0], image) for image in per_image)


@pytest.mark.parametrize("share", [(0.25, 0.25), (0.25, 1.0), (1.0, 1.0)])
def test_the_range_of_the_share_bounds_the_side(share):
    sides = [
        int(square_mask(1, (64, 96), 8, _generator(seed), per="image", share=share).sum()) ** 0.5
        for seed in range(60)
    ]
    assert min(sides) >= 8 * share[0] ** 0.5
    assert max(sides) <= 8 * share[1] ** 0.5
    assert (len(set(sides)) == 1) == (share[0] == share[1])


def test_square_area_is_uniform_on_average():
    areas = [
        square_mask(1, (512, 512), 8, _generator(seed), per="image").float().mean().item()
        for seed in range(500)
    ]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.04)


def test_each_image_is_given_half_of_the_classes_of_the_batch():
    for seed in range(20):
        labels = torch.randint(0, 3, (2, 4, 4), generator=_generator(seed)).to(torch.uint8)
        labels[1] += 3
        labels[1, 0] = IGNORE
        present = sorted({*labels.flatten().tolist()} - {IGNORE})
        numbers = torch.rand((2, 8), generator=_generator(seed))
        mask = class_mask(labels, 7, _generator(seed), ignore_is_class=False, classes_of="batch")
        for label, number, chosen in zip(labels, numbers, mask, strict=True):
            half = sorted(present, key=lambda c: number[c])[: -(-len(present) // 2)]
            expected = torch.isin(label, torch.tensor(half, dtype=torch.uint8))
            assert torch.equal(chosen, expected)


def _scores(label, corners, size, max_share):
    """Return the rule of the class-balanced crop for each corner."""
    scores = []
    for top, left in corners:
        window = label[top : top + size[0], left : left + size[1]]
        counts = [int((window == value).sum()) for value in window.unique()]
        unbalanced = max(counts) / sum(counts) >= max_share
        scores.append(0.0 if unbalanced else sum(math.log(count) for count in counts))
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_the_crop_with_the_most_balanced_classes_is_taken(seed):
    size, spec = (4, 5), TargetCrop(tries=6, max_share=0.75)
    # few classes, so that some crops have one class and some scores are equal
    blocks = torch.randint(0, 3, (3, 3, 4), generator=_generator(seed))
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2).to(torch.uint8)
    images = torch.rand(3, 3, 9, 12, generator=_generator(seed))
    draws = torch.rand((3, 6, 2), generator=_generator(seed))
    crops = balanced_crop(images, labels, size, 3, _generator(seed), spec)
    for image, label, drawn, crop in zip(images, labels, draws, crops, strict=True):
        # every place of a 9x12 image: 6 of the top, 8 of the left
        corners = [(int(down * 6), int(right * 8)) for down, right in drawn.tolist()]
        scores = _scores(label, corners, size, 0.75)
        # sums in another order may round to another best; without a balanced crop it is the first
        close = max(scores) - 1e-5
        best = [corner for corner, score in zip(corners, scores, strict=True) if score >= close]
        best = best if max(scores) > 0 else corners[:1]
        windows = (image[:, top : top + 4, left : left + 5] for top, left in best)
        assert any(torch.equal(crop, window) for window in windows)


def test_a_crop_as_large_as_the_image_is_the_image():
    images, labels = torch.rand(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.uint8)
    spec = TargetCrop(tries=2)
    assert torch.equal(balanced_crop(images, labels, (4, 5), 3, _generator(), spec), images)
