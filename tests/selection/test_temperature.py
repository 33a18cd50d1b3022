"""Temperatures: against naive loops and known answers; they change no label."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from udaseg.inference.labels import labels_from_logits, logits_at
from udaseg.inference.predictor import infer_batch
from udaseg.inference.sizes import needs_tiles
from udaseg.inference.tiles import TileOptions
from udaseg.selection.temperature import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    confidence_error,
    fit_temperature,
)

CPU = torch.device("cpu")


def drawn(scale, rows=40_000, classes=5, seed=0):
    """Return random logits times `scale`, and labels sampled from the softmax before scaling."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 9.0])
def test_the_scale_of_logits_is_recovered(scale):
    logits, labels = drawn(scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.03)


def test_no_temperature_of_a_fine_grid_makes_the_labels_likelier():
    logits, labels = drawn(2.0, rows=500)
    fitted = confidence_error(logits, labels, fit_temperature(logits, labels)).nll
    grid = [
        confidence_error(logits, labels, t).nll
        for t in np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 400)
    ]
    assert fitted <= min(grid) + 1e-6


def test_trust_equals_a_loop_over_pixels():
    logits, labels = drawn(2.0, rows=300)
    result = confidence_error(logits, labels, 1.7)
    bins = {}
    nll = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        shares = [math.exp(value / 1.7) for value in row]
        shares = [share / sum(shares) for share in shares]
        sure, right = max(shares), shares.index(max(shares)) == label
        bins.setdefault(min(int(sure * 20), 19), []).append((sure, right))
        nll -= math.log(shares[label])
    every = [pair for pairs in bins.values() for pair in pairs]
    gaps = [abs(sum(s for s, _ in pairs) - sum(r for _, r in pairs)) for pairs in bins.values()]
    assert result.pixels == 300
    assert result.accuracy == pytest.approx(sum(right for _, right in every) / 300)
    assert result.confidence == pytest.approx(sum(sure for sure, _ in every) / 300, rel=1e-5)
    assert result.error == pytest.approx(sum(gaps) / 300, rel=1e-4)
    assert result.nll == pytest.approx(nll / 300, rel=1e-5)


def test_the_right_temperature_takes_the_calibration_error_away():
    logits, labels = drawn(3.0)
    assert confidence_error(logits, labels).error > 0.1
    assert confidence_error(logits, labels, fit_temperature(logits, labels)).error < 0.01


def test_what_is_always_right_is_cold_and_what_is_never_right_is_hot():
    logits = torch.randn(100, 4)
    assert fit_temperature(logits, logits.argmax(1)) < 1.5 * MIN_TEMPERATURE
    assert fit_temperature(logits, logits.argmin(1)) > 0.99 * MAX_TEMPERATURE


@pytest.mark.parametrize("size", [(5, 7), (40, 33), (9, 90), (3, 4)])
def test_logits_of_some_pixels_are_those_of_the_enlarged_map(size):
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    places = np.arange(size[0] * size[1])
    rows, columns = np.unravel_index(places, size)
    torch.testing.assert_close(logits_at(logits, size, rows, columns), wide.flatten(1).T)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 20.0])
def test_a_temperature_changes_confidence_as_the_softmax_does_and_no_label(temperature):
    logits = 6 * torch.randn(6, 9, 11, generator=torch.Generator().manual_seed(1))
    plain, _ = labels_from_logits(logits, (70, 31), confidence=True)
    labels, sure = labels_from_logits(logits, (70, 31), confidence=True, temperature=temperature)
    assert (labels == plain).all()
    wide = F.interpolate(logits[None], (70, 31), mode="bilinear", align_corners=False)[0]
    expected = (wide / temperature).softmax(0).amax(0).numpy()
    np.testing.assert_allclose(sure, expected, rtol=1e-5 / temperature + 1e-5)


class Small(torch.nn.Module):
    """Two 3x3 convolutions with a total stride of 2; out of memory above `room` images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 6, 3, 2, 1)
        self.last = torch.nn.Conv2d(6, 4, 3, 1, 1)
        self.most = 0
        self.room = 99

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.most = max(self.most, len(images))
        seen = self.last(self.first(images).relu())
        return type("Seen", (), {"logits": 9 * seen})


def pictures(count, size=(24, 32)):
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("how", [{}, {"flip": True}, {"window": (16, 20)}])
def test_images_together_are_labelled_as_one_by_one(how):
    model, images, sizes = Small().eval(), pictures(3), [(24, 32), (50, 61), (12, 9)]
    options = TileOptions(CPU, confidence=True, temperature=2.0, **how)
    together = list(infer_batch(model, images, sizes, options, logits=True))
    for image, size, prediction in zip(images, sizes, together, strict=True):
        (alone,) = infer_batch(model, [image], [size], options, logits=True)
        assert prediction.labels.shape == size
        assert (prediction.labels == alone.labels).mean() > 0.999  # rounding can break ties
        np.testing.assert_allclose(prediction.confidence, alone.confidence, atol=1e-5)
        np.testing.assert_allclose(prediction.logits, alone.logits, atol=1e-4)
        again, _ = labels_from_logits(torch.from_numpy(prediction.logits), size)
        assert (again == prediction.labels).all()


def test_what_does_not_fit_together_is_looked_at_in_parts():
    model, images = Small().eval(), pictures(5)
    whole = list(infer_batch(model, images, [(24, 32)] * 5, TileOptions(CPU)))
    model.room, model.most = 2, 0
    parts = list(infer_batch(model, images, [(24, 32)] * 5, TileOptions(CPU)))
    assert model.most == 2
    assert all((a.labels == b.labels).mean() > 0.999 for a, b in zip(whole, parts, strict=True))
    model.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(infer_batch(model, images, [(24, 32)] * 5, TileOptions(CPU)))


def test_a_large_image_is_seen_in_tiles_and_has_no_logits():
    (image,) = pictures(1, (2049, 2049))
    model = torch.nn.Module()
    model.forward = lambda images: type("Seen", (), {"logits": images})
    assert needs_tiles(image.shape[:2])
    (prediction,) = infer_batch(model, [image], [(2049, 2049)], TileOptions(CPU), logits=True)
    assert prediction.logits is None
    assert (prediction.labels == image.argmax(-1)).all()
