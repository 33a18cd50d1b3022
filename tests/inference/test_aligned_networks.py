"""A network whose corners are aligned is enlarged so wherever it is used."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.small import small_segmenter
from udaseg.inference import export, labels, tiles
from udaseg.inference.predictor import infer_batch
from udaseg.inference.tiles import TileOptions
from udaseg.inference.windows import predict_batch

CPU = torch.device("cpu")


def aligned_network():
    network = small_segmenter(projector=False).eval().requires_grad_(False)
    network.align_corners = True
    with torch.no_grad():  # far from ties
        for convolution in network.head.modules():
            if isinstance(convolution, torch.nn.Conv2d):
                convolution.weight.mul_(20)
    return network


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def to_images(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def enlarged(network, image, size):
    logits = network(to_images(image)).logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize("size", [(40, 72), (83, 120)])
def test_predictions(size):
    network, image = aligned_network(), pixels(40, 72)
    (found,) = infer_batch(network, [image], [size], TileOptions(CPU, confidence=True))
    shares = enlarged(network, image, size).softmax(0)
    assert (found.labels == shares.argmax(0).numpy()).all()
    np.testing.assert_allclose(found.confidence, shares.amax(0).numpy(), atol=1e-5)
    network.align_corners = False
    (other,) = infer_batch(network, [image], [size], TileOptions(CPU))
    assert (other.labels != found.labels).mean() > 0.01


def test_views_of_an_image():
    network, image = aligned_network(), pixels(40, 72)
    found = predict_batch(network, to_images(image), flip=True, align_corners=True)[0]
    size = (40, 72)
    shares = enlarged(network, image, size).softmax(0)
    mirrored = enlarged(network, image[:, ::-1].copy(), size).softmax(0).flip(-1)
    assert torch.allclose(found.exp(), (shares + mirrored) / 2, atol=1e-5)


def test_a_tile_has_the_labels_of_the_whole_image(monkeypatch):
    network, image = aligned_network(), pixels(64, 96)
    options = TileOptions(CPU, confidence=True, align_corners=True)
    found, sure = tiles.label_in_tiles(network, image, (64, 96), options)
    shares = enlarged(network, image, (64, 96)).softmax(0)
    assert (found == shares.argmax(0).numpy()).all()
    np.testing.assert_allclose(sure, shares.amax(0).numpy(), atol=1e-5)


def test_chosen_pixels():
    logits = torch.randn(5, 6, 9)
    rows, columns = np.array([0, 3, 39, 17]), np.array([71, 0, 5, 33])
    found = labels.logits_at(logits, (40, 72), rows, columns, align_corners=True)
    wide = F.interpolate(logits[None], (40, 72), mode="bilinear", align_corners=True)[0]
    assert torch.allclose(found, wide[:, rows, columns].T, atol=1e-5)


@pytest.mark.parametrize("argmax", [False, True])
def test_the_exported_module(argmax):
    network, image = aligned_network(), pixels(40, 72)
    module = export.ExportModule(network, uint8=True, argmax=argmax)
    found = module(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    expected = enlarged(network, image, (40, 72))
    assert torch.equal(found, expected.argmax(0).to(torch.uint8) if argmax else expected)
