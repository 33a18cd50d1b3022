"""Streaming thresholds against exact medians; initial prototypes against a plain pass."""

import pytest
import torch

from udaseg.data.labels.classes import IGNORE
from udaseg.methods.contrast.prototypes import ClassPrototypes, image_means
from udaseg.methods.passes import (
    BINS,
    confidence_histogram,
    confidence_thresholds,
    threshold_labels,
)
from udaseg.methods.views import CellView


def _pixels(seed, count=4001, classes=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - 1, (count,), generator=generator)  # never the last class
    confidence = torch.rand(count, generator=generator) ** 0.3
    return labels, confidence


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_streaming_quantiles_equal_the_exact_ones_to_one_bin(seed, quantile):
    labels, confidence = _pixels(seed)
    parts = torch.arange(len(labels)).split(333)
    histogram = sum(confidence_histogram(labels[part], confidence[part], 5) for part in parts)
    assert histogram.shape == (5, BINS)
    assert histogram.sum() == len(labels)
    quantiles = confidence_thresholds(histogram, quantile=quantile, cap=1.0)
    for number in range(4):
        ordered = confidence[labels == number].double().sort().values
        exact = ordered[int((len(ordered) - 1) * quantile)].item()
        assert abs(quantiles[number].item() - exact) <= 1 / BINS
    assert quantiles[4] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 1001, 1002])
def test_the_released_rank_is_that_of_numpys_rounding(count):
    confidence = torch.arange(count) / (count + 1) + 1e-5
    histogram = confidence_histogram(torch.zeros(count, dtype=torch.long), confidence, 1)
    ranks = {
        "released": min(count - 1, round(count * 0.5)),  # half to even, as numpy
        "lower": (count - 1) // 2,
    }
    for rank, position in ranks.items():
        found = confidence_thresholds(histogram, quantile=0.5, cap=1.0, rank=rank)
        assert 0 <= confidence[position].item() - found.item() <= 1 / BINS


def test_thresholds_are_capped_and_a_class_that_was_never_predicted_has_0():
    confidence = torch.tensor([0.99, 1.0, 0.98, 0.3])
    histogram = confidence_histogram(torch.tensor([0, 0, 0, 1]), confidence, 3)
    thresholds = confidence_thresholds(histogram, quantile=0.5, cap=0.9).tolist()
    assert thresholds[0] == pytest.approx(0.9)
    assert 0.2999 <= thresholds[1] <= 0.3
    assert thresholds[2] == 0


def test_a_pixel_is_kept_from_its_class_threshold_on():
    labels = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    confidence = torch.tensor([[0.49, 0.5, 0.69, 0.7]])
    kept = threshold_labels(labels, confidence, [0.5, 0.7 - 1e-6])
    assert kept.tolist() == [[IGNORE, 0, IGNORE, 1]]


def _image(seed, channels=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(channels, 5, 7, generator=generator)
    labels = torch.randint(0, classes - 1, (5, 7), generator=generator)
    labels[0] = 255
    predictions = torch.randint(0, classes - 1, (5, 7), generator=generator)
    return features, labels, predictions


def _naive(images, classes=4):
    """Average over images the mean unit feature of correctly predicted pixels, with loops."""
    prototypes = {}
    for number in range(classes):
        means = []
        for features, labels, predictions in images:
            class_features = [
                features[:, row, column].double() / features[:, row, column].double().norm()
                for row in range(labels.shape[0])
                for column in range(labels.shape[1])
                if labels[row, column] == number == predictions[row, column]
            ]
            if class_features:
                means.append(torch.stack(class_features).mean(0))
        if means:
            prototypes[number] = torch.stack(means).mean(0)
    return prototypes


def _means(image):
    features, labels, predictions = (part[None] for part in image)
    return image_means(CellView(features, None, labels, predictions, None), 4)


def test_first_prototypes_equal_the_naive_loops():
    images = [_image(seed) for seed in range(5)]
    means, seen = (torch.stack(parts) for parts in zip(*map(_means, images), strict=True))
    assert means.dtype == torch.float64
    prototypes = means.sum(0) / seen.sum(0).clamp_min(1)[:, None]
    expected = _naive(images)
    assert seen.any(0).tolist() == [True, True, True, False]
    for number, mean in expected.items():
        assert torch.allclose(prototypes[number], mean, atol=1e-6)
    assert not prototypes[3].any()


@pytest.mark.parametrize("normalise", [True, False])
def test_prototypes_begin_with_the_pass(normalise):
    means, seen = _means(_image(0))
    prototypes = ClassPrototypes(4, 6, momentum=0.999, absent="keep", normalise=normalise)
    prototypes.initialise(means, seen)
    assert torch.equal(prototypes.seen, seen)
    lengths = prototypes.means[seen].norm(dim=1)
    if normalise:
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-6)
    else:
        assert torch.allclose(prototypes.means.double(), means, atol=1e-7)
