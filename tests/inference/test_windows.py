"""Windows, flips, scales and upsampling, on models with known outputs."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from udaseg.inference import labels as labels_module
from udaseg.inference.labels import labels_from_logits
from udaseg.inference.predictor import infer_batch
from udaseg.inference.sizes import MAX_WHOLE_PIXELS, input_size, untiled_input_size
from udaseg.inference.tiles import TileOptions, label_in_tiles
from udaseg.inference.windows import predict_batch, windows

CPU = torch.device("cpu")


def predict_logits(model, seen, **options):
    """Return the logits of one image (1, 3, H, W)."""
    return predict_batch(model, seen, **options)[0]


def per_pixel(images):
    """Apply a pixelwise model: four classes from three colours."""
    mixing = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [-2, 1, 2]])
    return SimpleNamespace(logits=torch.einsum("kc,bchw->bkhw", mixing, images))


def strided(images):
    """Apply the pixelwise model at stride 4."""
    return SimpleNamespace(logits=F.avg_pool2d(per_pixel(images).logits, 4))


def leaning(images):
    """Apply the pixelwise model to the right neighbour, so that a flip changes the result."""
    return SimpleNamespace(logits=per_pixel(F.pad(images, (0, 1))[..., 1:]).logits)


def image(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(20, 30), (33, 17), (8, 8), (5, 40)])
@pytest.mark.parametrize("window", [(8, 8), (16, 10), (64, 64)])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.75])
def test_windows_cover_every_pixel_and_stay_inside(size, window, overlap):
    covered = np.zeros(size, int)
    for rows, columns in windows(size, window, overlap):
        assert 0 <= rows.start < rows.stop <= size[0]
        assert 0 <= columns.start < columns.stop <= size[1]
        assert rows.stop - rows.start == min(window[0], size[0])
        assert columns.stop - columns.start == min(window[1], size[1])
        covered[rows, columns] += 1
    assert covered.min() >= 1


@pytest.mark.parametrize("window", [(8, 8), (16, 24), (20, 7), (100, 100)])
def test_sliding_over_a_per_pixel_model_equals_the_model(window):
    seen = image(20, 30)
    whole = torch.softmax(per_pixel(seen).logits[0], 0)
    # exp, not softmax, which would hide weights that do not sum to one
    torch.testing.assert_close(predict_logits(per_pixel, seen, window=window).exp(), whole)


def test_flip_averaging_does_not_know_left_from_right():
    seen = image(12, 18)
    there = predict_logits(leaning, seen, flip=True)
    back = predict_logits(leaning, seen.flip(-1), flip=True).flip(-1)
    torch.testing.assert_close(there, back)
    plain = predict_logits(leaning, seen)
    assert not torch.allclose(there.softmax(0), plain.softmax(0), atol=1e-3)


def test_flip_averaging_over_a_per_pixel_model_equals_the_model():
    seen = image(12, 18)
    whole = torch.softmax(per_pixel(seen).logits[0], 0)
    torch.testing.assert_close(predict_logits(per_pixel, seen, flip=True).exp(), whole)


def test_scales_of_a_uniform_image_change_nothing():
    seen = torch.full((1, 3, 16, 24), 0.3)
    several = predict_logits(per_pixel, seen, scales=(0.5, 1.0, 1.25), window=(8, 8), flip=True)
    torch.testing.assert_close(several.softmax(0), per_pixel(seen).logits[0].softmax(0))


def test_scales_average_probabilities():
    seen = image(16, 24)
    small = F.interpolate(seen, (8, 12), mode="bilinear", align_corners=False)
    shares = per_pixel(small).logits.softmax(1)
    enlarged = F.interpolate(shares, (16, 24), mode="bilinear", align_corners=False)[0]
    both = predict_logits(per_pixel, seen, scales=(1.0, 0.5)).softmax(0)
    torch.testing.assert_close(both, (per_pixel(seen).logits[0].softmax(0) + enlarged) / 2)


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((7, 11), (56, 88)),
        ((7, 11), (50, 91)),
        ((16, 16), (16, 16)),
        ((20, 30), (9, 14)),
        ((1, 1), (5, 3)),
        ((6, 9), (6, 40)),
        ((6, 9), (200, 9)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_labels_equal_upsampling_and_argmax(cells, size, seed):
    logits = torch.randn(6, *cells, generator=torch.Generator().manual_seed(seed))
    labels, confidence = labels_from_logits(logits, size, confidence=True)
    wide = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    shares, winner = wide.softmax(0).max(0)
    first, second = wide.topk(2, dim=0).values
    clear = (first - second > 1e-5).numpy()
    assert clear.mean() > 0.99
    assert (labels == winner.numpy())[clear].all()
    np.testing.assert_allclose(confidence, shares.numpy(), atol=1e-5)
    assert labels.dtype == np.uint8
    assert confidence.dtype == np.float32


def test_of_equal_logits_the_first_class_wins():
    labels, confidence = labels_from_logits(torch.zeros(3, 2, 2), (4, 4), confidence=True)
    assert (labels == 0).all()
    np.testing.assert_allclose(confidence, 1 / 3, rtol=1e-6)


class OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on a GPU."""

    is_cuda = True


def test_what_does_not_fit_on_a_gpu_is_enlarged_in_bands(monkeypatch):
    logits = torch.randn(6, 7, 11, generator=torch.Generator().manual_seed(0))
    expected, sure = labels_from_logits(logits, (50, 91), confidence=True, temperature=2)
    asked = []

    def no_room(*words, **options):
        asked.append(options)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(labels_module, "_labels_at_once", no_room)
    there = logits.as_subclass(OnGpu)
    labels, same = labels_from_logits(there, (50, 91), confidence=True, temperature=2)
    assert asked == [{"confidence": True, "temperature": 2, "align_corners": False}]
    assert (labels == expected).all()
    assert (same == sure).all()


def test_large_logits_give_a_finite_confidence():
    logits = torch.tensor([1e4, -1e4, 9e3]).view(3, 1, 1)
    labels, confidence = labels_from_logits(logits, (2, 2), confidence=True)
    assert (labels == 0).all()
    assert (confidence == 1).all()


def test_labels_need_a_fraction_of_the_memory_of_all_planes():
    logits = torch.randn(19, 32, 64, generator=torch.Generator().manual_seed(0))
    size = (1024, 2048)
    labels_from_logits(logits, (64, 64))
    tracemalloc.start()
    labels_from_logits(logits, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    all_planes = 19 * size[0] * size[1] * 4
    assert peak < all_planes / 20


@pytest.mark.parametrize("model", [per_pixel, strided])
@pytest.mark.parametrize("size", [(1100, 40), (40, 2080), (1028, 1300), (2600, 8)])
def test_tiles_of_a_large_image_equal_the_whole(model, size):
    seen = pixels(*size)
    options = TileOptions(CPU, confidence=True)
    (whole,) = infer_batch(model, [seen], [size], options)
    tiled, tiled_sure = label_in_tiles(model, seen, size, options)
    assert (tiled != whole.labels).sum() <= 2  # ties, decided by rounding
    np.testing.assert_allclose(tiled_sure, whole.confidence, atol=1e-6)


def surrounded(images):
    """Apply `strided` with one more class, whose logit is the mean brightness of the input."""
    logits = strided(images).logits
    bright = 8 * images.mean((1, 2, 3), keepdim=True) - 0.5
    return SimpleNamespace(logits=torch.cat([logits, bright.expand(-1, 1, *logits.shape[2:])], 1))


def blended(seen, side):
    """Upsample and blend the logits of tiles along axis `side` on a canvas of the whole image."""
    length = seen.shape[side]
    total = np.zeros((5, *seen.shape[:2]))
    for start in range(0, length, 1024):
        stop = min(length, start + 1024)
        first, behind = max(0, start - 256), min(length, stop + 256)
        part = seen.take(range(first, behind), axis=side)
        tensor = torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255
        logits = surrounded(tensor).logits
        # the weight of a cell is that of its centre; pixels are between cells
        cells = (np.arange((behind - first) // 4) + 0.5) * 4 + first
        weight = np.ones(len(cells))
        if start:
            weight *= ((cells - (start - 128)) / 256).clip(0, 1)
        if stop < length:
            weight *= ((stop + 128 - cells) / 256).clip(0, 1)
        shape = (1, -1, 1) if side == 0 else (1, 1, -1)
        logits = logits * torch.from_numpy(weight.reshape(shape)).float()
        wide = F.interpolate(logits, part.shape[:2], mode="bilinear", align_corners=False)[0]
        at = (slice(None), slice(first, behind)) if side == 0 else np.s_[:, :, first:behind]
        total[at] += wide.numpy()
    return total


@pytest.mark.parametrize(("size", "side"), [((2304, 32), 0), ((32, 3104), 1)])
def test_tiles_go_over_into_each_other_as_on_one_canvas(size, side):
    seen = pixels(*size)
    ramp = np.linspace(0, 1, size[side])[:, None, None]
    seen = (seen * (ramp if side == 0 else ramp.swapaxes(0, 1))).astype(np.uint8)
    labels, sure = label_in_tiles(surrounded, seen, size, TileOptions(CPU, confidence=True))
    logits = torch.from_numpy(blended(seen, side))
    shares, winner = logits.softmax(0).max(0)
    assert {0, 1, 2, 3, 4} >= set(np.unique(labels)) > {4}
    assert (labels == winner.numpy()).mean() > 0.9999  # the others are ties up to rounding
    np.testing.assert_allclose(sure, shares.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(1101, 1501), (2090, 1030), (1025, 1290)])
def test_no_seam_is_seen_where_tiles_disagree(size):
    """Tiles predict different constants; the change between pixels is limited by the ramp."""

    def disagreeing(images):
        bright = 4 * images.mean((1, 2, 3), keepdim=True)
        shape = (images.shape[2] // 8, images.shape[3] // 8)
        return SimpleNamespace(
            logits=torch.cat([bright, torch.zeros_like(bright)], 1).expand(-1, -1, *shape)
        )

    rows, columns = np.indices(size)
    seen = np.stack([255 * (rows / size[0] + columns / size[1]) / 2] * 3, -1).astype(np.uint8)
    _, sure = label_in_tiles(disagreeing, seen, size, TileOptions(CPU, confidence=True))
    logit = np.log(sure / (1 - sure))  # the logit of the first class
    assert logit.max() - logit.min() > 0.5
    for axis in (0, 1):
        assert np.abs(np.diff(logit, axis=axis)).max() < 2 * (logit.max() - logit.min()) / 256


def test_labels_are_enlarged_to_the_stored_size():
    seen = np.zeros((4, 8, 3), np.uint8)
    seen[:, :4, 0] = 255
    seen[:, 4:, 2] = 255
    (whole,) = infer_batch(per_pixel, [seen], [(40, 80)], TileOptions(CPU))
    tiled, _ = label_in_tiles(per_pixel, seen, (40, 80), TileOptions(CPU))
    for labels in (whole.labels, tiled):
        assert labels.shape == (40, 80)
        assert (labels[:, :40] == 0).all()
        assert (labels[:, 40:] == 2).all()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((1024, 2048), (512, 1024)),  # the training shape
        ((1052, 2100), (512, 1024)),  # within 2 %
        ((512, 1024), (512, 1024)),
        ((720, 1280), (543, 965)),  # another shape, as many pixels
        ((1280, 720), (965, 543)),
    ],
)
def test_the_network_sees_images_at_the_scale_of_training(stored, expected):
    assert input_size(stored, (512, 1024)) == expected


@pytest.mark.parametrize("stored", [(1, 10000), (7, 5), (12000, 8000), (10000, 1)])
def test_the_network_never_sees_many_more_pixels_than_in_training(stored):
    height, width = input_size(stored, (512, 1024))
    assert height * width == pytest.approx(512 * 1024, rel=0.1)


def test_without_a_trained_size_images_stay_as_they_are():
    assert input_size((333, 77), None) == (333, 77)


@pytest.mark.parametrize("stored", [(3000, 4000), (600, 60_000), (2049, 2048)])
def test_what_is_looked_at_whole_has_its_shape_and_no_more_than_most_pixels(stored):
    height, width = untiled_input_size(stored, None)
    assert height * width <= MAX_WHOLE_PIXELS * 1.001
    assert height / width == pytest.approx(stored[0] / stored[1], 0.01)
    assert untiled_input_size((2048, 2048), None) == (2048, 2048)
    assert untiled_input_size(stored, (512, 1024)) == input_size(stored, (512, 1024))
