"""Inference on a split: every image once and in order, with any batch size and prefetching."""

import tracemalloc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.support.colors import COLORS, ColorNetwork, painted, random_labels
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.inference import sizes
from udaseg.inference.pipeline import InferenceOptions, infer

CPU = torch.device("cpu")
SIZES = [(16, 24), (16, 24), (8, 40), (16, 24), (16, 24), (16, 24), (8, 40)]


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    samples = []
    for number, size in enumerate(SIZES):
        truth = random_labels(*size, seed=number)
        Image.fromarray(painted(truth)).save(folder / f"{number}.png")
        Image.fromarray(truth).save(folder / f"{number}-label.png")
        samples.append(Sample(f"{number}.png", f"{number}-label.png", *size))
    return PreparedDataset("city", folder, folder, COLORS, {"val": tuple(samples)})


class Watching(ColorNetwork):
    """Record the input shapes; out of memory with more than `most` images."""

    def __init__(self, most=99):
        super().__init__()
        self.shapes, self.most = [], most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        self.shapes.append(tuple(images.shape))
        return super().forward(images)


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_change_neither_order_nor_labels(city, batch, flip):
    network = Watching()
    options = InferenceOptions(batch=batch, flip=flip)
    seen = list(infer(network, city, city.split("val"), options, device=CPU, truth=True))
    assert [each.sample for each in seen] == list(city.split("val"))
    for each in seen:
        assert (each.labels == each.truth).all()
        assert each.confidence is None
    passes = 2 if flip else 1
    assert sum(shape[0] for shape in network.shapes) == passes * len(SIZES)
    assert max(shape[0] for shape in network.shapes) == min(batch or 1, 3)


def test_a_batch_that_does_not_fit_in_memory_is_halved(city):
    network = Watching(most=1)
    options = InferenceOptions(batch=3)
    seen = infer(network, city, city.split("val"), options, device=CPU, truth=True)
    assert all((each.labels == each.truth).all() for each in seen)
    with pytest.raises(torch.OutOfMemoryError):
        list(infer(Watching(most=0), city, city.split("val"), options, device=CPU, truth=True))


def test_a_look_is_a_function_of_the_set_not_of_its_order(city):
    backwards = PreparedDataset(
        "city", city.folder, city.image_root, COLORS, {"val": city.split("val")[::-1]}
    )
    options = InferenceOptions(batch=2, resize=(12, 20))
    there, back = (
        confusion_matrix(ColorNetwork(), COLORS, each, "val", options, device=CPU)
        for each in (city, backwards)
    )
    assert (there.counts == back.counts).all()
    assert there.counts.sum() == sum(height * width for height, width in SIZES)


def test_without_truth_labels_have_the_size_of_the_image_and_confidence_is_there_when_asked(city):
    bare = PreparedDataset("city", city.folder, city.image_root, None, city.splits)
    samples = city.split("val")
    predictions = infer(
        ColorNetwork(), bare, samples, InferenceOptions(), device=CPU, truth=False, confidence=True
    )
    for each, size in zip(predictions, SIZES, strict=True):
        assert each.truth is None
        assert each.labels.shape == each.confidence.shape == size
        assert each.confidence.min() > 0.99


def test_the_release_look_enlarges_with_aligned_corners(city):
    small = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    (seen,) = infer(
        lambda images: SimpleNamespace(logits=small),
        *(city, city.split("val")[:1], InferenceOptions(release=True)),
        device=CPU,
        truth=True,
    )
    wide = F.interpolate(small, (512, 1024), mode="bilinear", align_corners=True)
    assert (seen.labels == wide[0].argmax(0).numpy()).all()
    assert seen.truth.shape == (512, 1024)


def test_images_too_large_to_be_seen_at_once_go_in_tiles_in_their_turn(city, monkeypatch):
    monkeypatch.setattr(sizes, "MAX_WHOLE_PIXELS", 16 * 24 - 1)
    network = Watching()
    predictions = list(
        infer(network, city, city.split("val"), InferenceOptions(batch=2), device=CPU, truth=True)
    )
    assert [each.sample for each in predictions] == list(city.split("val"))
    assert all((each.labels == each.truth).all() for each in predictions)
    # 8x40 is below the limit but is not batched, as its neighbours have another size
    assert [shape[0] for shape in network.shapes] == [1] * len(SIZES)
    assert InferenceOptions().needs_tiles((16, 24))
    assert not InferenceOptions(resize=(8, 8)).needs_tiles((16, 24))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("batch", [None, 1])
def test_on_a_gpu_batches_are_labelled_in_order_too(city, batch):
    network = Watching()
    predictions = infer(
        *(network, city, city.split("val"), InferenceOptions(batch=batch)),
        device=torch.device("cuda"),
        truth=True,
    )
    assert all((each.labels == each.truth).all() for each in predictions)
    assert max(shape[0] for shape in network.shapes) == (batch or 3)


def test_memory_does_not_grow_with_the_number_of_images(city):
    samples = city.split("val")[:1]
    image = read_image(city.image_path(samples[0]))

    def peak(times):
        many = PreparedDataset("c", city.folder, city.image_root, COLORS, {"val": samples * times})
        tracemalloc.start()
        confusion_matrix(ColorNetwork(), COLORS, many, "val", InferenceOptions(), device=CPU)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(3)
    few, many = peak(20), peak(120)
    assert many - few < 50 * image.nbytes  # counts and names, not 100 images


class Keeping(Watching):
    """Record at each pass whether the activations of the previous pass are still alive."""

    def __init__(self, most):
        super().__init__(most)
        self.made, self.held = None, []

    def forward(self, images):
        self.held.append(self.made is not None and self.made() is not None)
        activations = images * 2
        self.made = weakref.ref(activations)
        return super().forward(images)


def test_what_did_not_fit_is_let_go_of_before_the_halves(city):
    network = Keeping(most=1)
    samples = city.split("val")
    predictions = list(
        infer(network, city, samples, InferenceOptions(batch=3), device=CPU, truth=True)
    )
    assert all((each.labels == each.truth).all() for each in predictions)
    assert len(network.held) > len(samples)
    assert not any(network.held)
