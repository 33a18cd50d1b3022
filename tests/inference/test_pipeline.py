"""Inference on a split: every image once and in order, with any batch size and prefetching."""

import threading
import tracemalloc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.support.colors import COLORS, ColorNetwork, painted, random_labels
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image
from udaseg.errors import DataError
from udaseg.evaluation.evaluate import confusion_matrix
from udaseg.inference import sizes
from udaseg.inference.pipeline import (
    InferenceOptions,
    Limit,
    OrderedWork,
    batches_of_one_size,
    infer,
    read_ahead,
)

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


def test_reading_ahead_keeps_the_order_and_reads_little_ahead():
    begun, lock = [], threading.Lock()

    def read(job):
        with lock:
            begun.append(job)
        return -job

    for taken, ready in enumerate(read_ahead(read, range(200), Limit(12))):
        assert ready == -taken
        assert len(begun) <= taken + 1 + 12
    assert sorted(begun) == list(range(200))


def test_a_reader_that_fails_is_heard_at_its_turn_and_the_rest_is_not_begun():
    begun = []

    def read(job):
        begun.append(job)
        if job == 3:
            raise DataError("damaged")
        return job

    seen = []
    with pytest.raises(DataError, match="damaged"):
        seen.extend(read_ahead(read, range(1000)))
    assert len(begun) < 30


def test_reading_ahead_begins_no_job_whose_pixels_exceed_the_limit():
    begun = []

    def read(job):
        begun.append(job)
        return job

    jobs = [3, 4, 50, 4, 3, 90, 90]
    ready = read_ahead(read, jobs, Limit(4, pixels=50), pixels_of=lambda job: job, workers=1)
    for taken, job in enumerate(ready):
        assert job == jobs[taken]
        waiting = begun[taken + 1 :]
        assert sum(waiting) <= 50 or len(waiting) == 1
    assert begun == jobs


def test_batches_hold_consecutive_items_of_one_size_up_to_the_limit():
    items = [*"aaabbacccc"]
    batches = list(batches_of_one_size(items, tuple, Limit(2)))
    assert batches == [["a", "a"], ["a"], ["b", "b"], ["a"], ["c", "c"], ["c", "c"]]
    few_pixels = Limit(9, pixels=4)
    batches = batches_of_one_size(items, tuple, few_pixels, pixels_of=lambda _: 2)
    assert list(map(len, batches)) == [3, 2, 1, 3, 1]


def test_a_full_batch_is_yielded_before_the_next_item_is_taken():
    items = iter(range(5))
    assert next(batches_of_one_size(items, lambda _: (), Limit(3))) == [0, 1, 2]
    assert next(items) == 3


def test_work_in_the_background_keeps_its_order_and_few_calls_wait():
    finished, submitted = [], 0
    with OrderedWork(Limit(3, pixels=20)) as work:
        for number in range(100):
            work.submit(partial(finished.append, number), pixels=5)
            submitted += 1
            assert submitted - len(finished) <= 3
        work.submit(partial(finished.append, "large"), pixels=21)
        assert finished[-1] == "large"
    assert finished == [*range(100), "large"]


def test_a_failure_in_the_background_is_raised_and_the_calls_after_it_are_run():
    finished = []

    def fail():
        raise DataError("full")

    with pytest.raises(DataError, match="full"), OrderedWork(Limit(9)) as work:
        work.submit(fail)
        work.submit(partial(finished.append, 1))
    assert finished == [1]
    with pytest.raises(KeyError), OrderedWork(Limit(9)) as work:
        work.submit(fail)
        work.submit(partial(finished.append, 2))
        raise KeyError
    assert finished == [1, 2]


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
    assert many - few < 20 * image.nbytes


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
