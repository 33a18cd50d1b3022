"""Windows, flips, scales and batches: compare with naive loops, then check invariances."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from udaseg.inference.labels import labels_from_logits
from udaseg.inference.windows import predict_batch, windows


def image(height, width, seed=0, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def predict_logits(model, seen, **options):
    """Return the logits of one image (1, 3, H, W)."""
    return predict_batch(model, seen, **options)[0]


def constant(images):
    """Return the same logits for every pixel, at stride 4."""
    height, width = images.shape[-2:]
    logits = torch.tensor([0.5, 2.0, -1.0]).view(1, 3, 1, 1)
    return SimpleNamespace(
        logits=logits.expand(len(images), 3, -(-height // 4), -(-width // 4)).contiguous()
    )


def looking_around(images):
    """Apply an asymmetric 3x3 convolution from three colours to four classes."""
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    return SimpleNamespace(logits=F.conv2d(images, weight, padding=1))


def symmetric(images):
    """Apply the same convolution with a weight that is symmetric under a flip."""
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    return SimpleNamespace(logits=F.conv2d(images, weight + weight.flip(-1), padding=1))


def by_loops(model, seen, window, overlap):
    """Average the probabilities of the windows, pixel by pixel."""
    size = seen.shape[-2:]
    total, times = torch.zeros(4, *size), torch.zeros(size)
    for rows, columns in windows(tuple(size), window, overlap):
        shares = torch.softmax(model(seen[..., rows, columns]).logits[0], 0)
        for y in range(rows.start, rows.stop):
            for x in range(columns.start, columns.stop):
                total[:, y, x] += shares[:, y - rows.start, x - columns.start]
                times[y, x] += 1
    return total / times


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.5])
@pytest.mark.parametrize("window", [(5, 6), (9, 30)])
def test_windows_are_averaged_as_loops_over_pixels_do(window, overlap):
    seen = image(13, 17)
    shares = predict_logits(looking_around, seen, window=window, overlap=overlap).exp()
    torch.testing.assert_close(shares, by_loops(looking_around, seen, window, overlap))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("window", [None, (8, 8), (7, 20), (100, 100)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.75, 1.0, 1.5)])
def test_constant_logits_stay_what_they_are(flip, window, scales):
    result = predict_logits(constant, image(20, 30), window=window, flip=flip, scales=scales)
    expected = torch.tensor([0.5, 2.0, -1.0]).softmax(0)
    shares = result.softmax(0) if result.shape[-2:] == (5, 8) else result.exp()
    torch.testing.assert_close(shares, expected.view(3, 1, 1).expand_as(shares))


@pytest.mark.parametrize(("size", "window"), [((16, 24), (8, 8)), ((12, 40), (4, 10))])
def test_windows_without_overlap_tile_the_image_exactly(size, window):
    covered = np.zeros(size, int)
    for rows, columns in windows(size, window, 0.0):
        covered[rows, columns] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("window", [None, (8, 9)])
def test_one_scale_of_one_is_the_plain_look(window):
    seen = image(16, 20)
    plain = predict_logits(looking_around, seen, window=window)
    assert torch.equal(predict_logits(looking_around, seen, window=window, scales=(1.0,)), plain)
    if window is None:
        assert torch.equal(plain, looking_around(seen).logits[0])


def test_the_order_of_scales_does_not_matter():
    seen = image(16, 20)
    there, back = (
        predict_logits(looking_around, seen, scales=scales, flip=True)
        for scales in ((0.5, 1.0, 1.25), (1.25, 1.0, 0.5))
    )
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize("window", [None, (8, 8), (20, 11)])
def test_a_network_that_a_mirror_does_not_change_says_the_same_with_flips(window):
    seen = image(16, 20)
    flipped = predict_logits(symmetric, seen, flip=True, window=window).exp()
    if window is None:
        plain = symmetric(seen).logits[0].softmax(0)
        torch.testing.assert_close(flipped, plain)
    mirrored = predict_logits(symmetric, seen.flip(-1), flip=True, window=window).exp()
    torch.testing.assert_close(mirrored.flip(-1), flipped)


@pytest.mark.parametrize("how", [{}, {"flip": True}, {"window": (8, 9)}, {"scales": (0.5, 1.0)}])
def test_images_in_a_batch_know_nothing_of_each_other(how):
    seen = image(16, 20, count=3)
    together = predict_batch(looking_around, seen, **how)
    for number in range(3):
        alone = predict_logits(looking_around, seen[number : number + 1], **how)
        torch.testing.assert_close(together[number], alone)
    backwards = predict_batch(looking_around, seen.flip(0), **how)
    torch.testing.assert_close(backwards.flip(0), together)


@pytest.mark.parametrize("size", [(20, 33), (7, 7), (5, 60), (130, 1)])
def test_aligned_corners_are_those_of_torch(size):
    logits = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(1))
    labels, sure = labels_from_logits(logits, size, confidence=True, align_corners=True)
    wide = F.interpolate(logits[None], size, mode="bilinear", align_corners=True)[0]
    assert (labels == wide.argmax(0).numpy()).all()
    np.testing.assert_allclose(sure, wide.softmax(0).max(0).values.numpy(), atol=1e-6)


_HUGE = """
import sys
from types import SimpleNamespace
import numpy as np, torch
import torch.nn.functional as F
from udaseg.inference.tiles import TileOptions, label_in_tiles

torch.set_num_threads(1)
looks = "looks" in sys.argv
mixing = torch.randn(5 if looks else 19, 3, generator=torch.Generator().manual_seed(0))

def model(images):
    small = F.avg_pool2d(images, 16, ceil_mode=True)
    return SimpleNamespace(logits=torch.einsum("kc,bchw->bkhw", mixing, small))

image = np.zeros((9000, 12000, 3), np.uint8)
image[:, 6000:] = (200, 30, 90)
how = {"flip": True, "scales": (0.5,), "window": (512, 512)} if looks else {}
options = TileOptions(torch.device("cpu"), confidence=not looks, **how)
labels, sure = label_in_tiles(model, image, (9000, 12000), options)
assert labels.shape == (9000, 12000)
assert looks or sure.shape == labels.shape
assert (labels[:, 100:5900] == labels[4500, 3000]).all()
assert (labels[:, 6100:11900] == labels[4500, 9000]).all()
status = open("/proc/self/status").read()  # ru_maxrss includes the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("looks", ["plain", "looks"])
def test_an_image_of_12000_x_9000_takes_less_than_two_gigabytes(looks):
    done = subprocess.run(
        [sys.executable, "-c", _HUGE, looks], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2000
