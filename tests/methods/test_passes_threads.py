"""The passes read ahead, batch and write in threads: same numbers as a plain loop, nothing left."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.small import small_segmenter
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image, write_png
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.threads import OrderedWork
from udaseg.data.loading.transforms import resize_image
from udaseg.errors import DataError
from udaseg.methods import passes
from udaseg.methods.contrast.prototypes import image_means
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.views import labelled_view
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import evaluation_mode

CPU, CLASSES = torch.device("cpu"), 5
SIZES = [(16, 24)] * 3 + [(24, 16)] + [(16, 24)] * 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, samples = tmp_path_factory.mktemp("images"), []
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        labels = rng.integers(0, CLASSES, size, dtype=np.uint8)
        labels[0] = IGNORE
        write_png(folder / f"{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        write_png(folder / f"{number}-label.png", labels)
        samples.append(Sample(f"{number}.png", f"{number}-label.png", *size))
    return PreparedDataset("d", folder, folder, None, {"train": tuple(samples)})


@pytest.fixture
def source(dataset):
    return CropSource(dataset, "train", None, (8, 8), True, True)


@pytest.fixture
def target(dataset):
    return CropSource(dataset, "train", None, (8, 8), True, False)


@pytest.fixture
def batched(monkeypatch):
    """As on a GPU."""
    monkeypatch.setitem(passes._BATCH_SIZES, "cpu", 2)


def _nothing(_done, _total):
    pass


@torch.no_grad()
def _plainly(student, dataset):
    """Yield each image's output, size and labels with a plain loop."""
    with evaluation_mode(student):
        for sample in dataset.split("train"):
            image = read_image(dataset.image_path(sample))
            labels = torch.from_numpy(read_train_ids(dataset.label_path(sample)))[None]
            yield student(image_batch([image], CPU)), image.shape[:2], labels


def _plain_prototypes(student, dataset):
    found = [
        image_means(labelled_view(output, labels), CLASSES)
        for output, _, labels in _plainly(student, dataset)
    ]
    means, seen = (torch.stack(parts) for parts in zip(*found, strict=True))
    return means.sum(0) / seen.sum(0).clamp_min(1)[:, None], seen.any(0)


def _plain_labels(student, dataset):
    return [pseudo_labels(output.logits, size) for output, size, _ in _plainly(student, dataset)]


def test_prototypes_are_those_of_a_plain_loop(dataset, source):
    student = small_segmenter()
    means, seen = passes.collect_prototypes(student, source, CLASSES, CPU, _nothing)
    expected = _plain_prototypes(student, dataset)
    torch.testing.assert_close(means, expected[0], rtol=1e-12, atol=0)
    assert torch.equal(seen, expected[1])
    assert seen.any()


def test_confidence_is_that_of_a_plain_loop(dataset, target):
    student, done = small_segmenter(), []
    counts = passes.collect_confidence(
        *(student, target, CLASSES, CPU), lambda *numbers: done.append(numbers)
    )
    expected = torch.zeros(CLASSES, passes.BINS, dtype=torch.int64)
    for labels, confidence in _plain_labels(student, dataset):
        for label, value in zip(labels.flatten(), confidence.flatten(), strict=True):
            expected[int(label), min(int(value * passes.BINS), passes.BINS - 1)] += 1
    assert torch.equal(counts, expected)
    assert done == [(number, len(SIZES)) for number in range(1, len(SIZES) + 1)]


@pytest.mark.parametrize("aligned", [False, True])
def test_labels_of_smaller_images_have_the_size_of_the_files(dataset, target, tmp_path, aligned):
    student, size = small_segmenter(), (8, 16)
    student.align_corners = aligned
    seen = replace(target, resize=size)
    counts = passes.collect_confidence(student, seen, CLASSES, CPU, _nothing, at_file_size=True)
    assert counts.sum() == sum(rows * columns for rows, columns in SIZES)
    passes.write_pseudo_labels(
        student, seen, torch.zeros(CLASSES), tmp_path, CPU, _nothing, at_file_size=True
    )
    with evaluation_mode(student), torch.no_grad():
        for sample, written in zip(
            dataset.split("train"), _written(tmp_path, dataset), strict=True
        ):
            small = resize_image(read_image(dataset.image_path(sample)), size)
            logits = student(torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255).logits
            stored = (sample.height, sample.width)
            wide = F.interpolate(logits, stored, mode="bilinear", align_corners=aligned)
            assert (written == wide.argmax(1)[0].numpy()).mean() > 0.99


def _written(folder, dataset):
    return [read_train_ids(folder / f"{each.image}.png") for each in dataset.split("train")]


def test_pseudo_labels_are_those_of_a_plain_loop(dataset, target, tmp_path):
    student = small_segmenter()
    plain = _plain_labels(student, dataset)
    thresholds = torch.full((CLASSES,), torch.cat([c.flatten() for _, c in plain]).median())
    kept = passes.write_pseudo_labels(student, target, thresholds, tmp_path, CPU, _nothing)
    expected = [labels[0].masked_fill(sure[0] < thresholds[0], IGNORE) for labels, sure in plain]
    written = _written(tmp_path, dataset)
    for one, other in zip(written, expected, strict=True):
        assert np.array_equal(one, other.numpy())
    assert kept.tolist() == [
        sum(int((each == k).sum()) for each in expected) for k in range(CLASSES)
    ]
    assert 0 < kept.sum() < sum(each.size for each in written)


def test_batches_of_one_size_give_the_same(dataset, source, target, tmp_path, batched):
    student, sizes = small_segmenter(), []
    student.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[::2])))
    means, _ = passes.collect_prototypes(student, source, CLASSES, CPU, _nothing)
    assert sizes == [(2, 16), (1, 16), (1, 24), (2, 16), (1, 16)]
    torch.testing.assert_close(means, _plain_prototypes(student, dataset)[0])
    thresholds = torch.zeros(CLASSES)
    passes.write_pseudo_labels(student, target, thresholds, tmp_path, CPU, _nothing)
    for written, (labels, _) in zip(
        _written(tmp_path, dataset), _plain_labels(student, dataset), strict=True
    ):
        assert (written == labels[0].numpy()).mean() > 0.99


class Copies(TorchDispatchMode):
    """Record the copies between devices that wait; a fake tensor cannot be read at all."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        moves = func is torch.ops.aten._to_copy.default and args[0].device != out.device
        if moves and not kwargs.get("non_blocking"):
            self.waits.append((args[0].device.type, out.device.type, tuple(out.shape)))
        return out


@pytest.fixture
def on_fake_gpu(monkeypatch):
    """Return a function that runs a pass on a pretended GPU and returns the copies that wait."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: pinned.append(value) or value)

    def run(act):
        with FakeTensorMode(), Copies() as copies:
            with torch.device("cuda"):
                student = small_segmenter()
            copies.waits.clear()
            act(student, torch.device("cuda"))
        assert pinned
        return copies.waits

    return run


def test_a_gpu_is_waited_for_only_at_the_end(on_fake_gpu, source, target):
    waits = on_fake_gpu(
        lambda student, device: passes.collect_prototypes(student, source, 5, device, _nothing)
    )
    assert waits == [("cuda", "cpu", (5, 8)), ("cuda", "cpu", (5,))]
    waits = on_fake_gpu(
        lambda student, device: passes.collect_confidence(student, target, 5, device, _nothing)
    )
    assert waits == [("cuda", "cpu", (5, passes.BINS))]


def test_pseudo_labels_leave_a_gpu_without_a_wait(on_fake_gpu, target, tmp_path, monkeypatch):
    copied = []
    monkeypatch.setattr(passes, "_copy_to_host", copied.append)
    monkeypatch.setattr(OrderedWork, "submit", lambda _, call: None)
    waits = on_fake_gpu(
        lambda student, device: passes.write_pseudo_labels(
            *(student, target, torch.zeros(CLASSES), tmp_path, device, _nothing)
        )
    )
    assert waits == []
    assert [tuple(labels.shape) for labels in copied] == SIZES
    assert all(labels.is_cuda for labels in copied)


def test_the_thread_that_writes_waits_for_the_copy(target, tmp_path, monkeypatch):
    begun, waited = [], []

    def copy(labels):
        begun.append(threading.current_thread())
        return lambda: waited.append(threading.current_thread()) or labels

    monkeypatch.setattr(passes, "_copy_to_host", copy)
    student = small_segmenter()
    passes.write_pseudo_labels(student, target, torch.zeros(CLASSES), tmp_path, CPU, _nothing)
    assert begun == [threading.current_thread()] * len(SIZES)
    assert len(waited) == len(SIZES)
    assert threading.current_thread() not in waited


def test_a_copy_is_waited_for_only_when_it_is_taken(monkeypatch):
    events, labels = [], torch.arange(3)

    class Event:
        def __init__(self, *, blocking):
            assert blocking  # sleeps, so that the host's other threads run

        def record(self, stream):
            events.append(f"record on {stream}")

        def synchronize(self):
            events.append("wait")

    def to(device, *, non_blocking):
        events.append(f"copy to {device}" if non_blocking else "wait")
        return labels

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    take = passes._copy_to_host(SimpleNamespace(is_cuda=True, device="cuda:1", to=to))
    assert events == ["copy to cpu", "record on the stream of cuda:1"]
    assert take() is labels
    assert events[2:] == ["wait"]


ALL = {
    "prototypes": lambda student, crops, folder, tell: passes.collect_prototypes(
        student, crops, CLASSES, CPU, tell
    ),
    "confidence": lambda student, crops, folder, tell: passes.collect_confidence(
        student, crops, CLASSES, CPU, tell
    ),
    "pseudo-labels": lambda student, crops, folder, tell: passes.write_pseudo_labels(
        student, crops, torch.zeros(CLASSES), folder, CPU, tell
    ),
}


@pytest.mark.parametrize("run", ALL.values(), ids=ALL)
def test_a_pass_that_is_stopped_leaves_no_thread_and_the_mode_as_it_was(run, source, tmp_path):
    student, before = small_segmenter().train(), threading.active_count()

    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(student, source, tmp_path, stop)
    assert threading.active_count() == before
    assert all(part.training for part in student.modules())
    assert stopped.traceback  # keeps the frames of the pass until here


@pytest.mark.parametrize("run", ALL.values(), ids=ALL)
def test_a_file_that_cannot_be_read_is_named(run, source, tmp_path, monkeypatch):
    read = CropSource.read

    def damaged(crops, sample):
        if sample.image == "4.png":
            raise DataError("4.png: damaged")
        return read(crops, sample)

    monkeypatch.setattr(CropSource, "read", damaged)
    done = []
    with pytest.raises(DataError, match=r"4\.png: damaged"):
        run(small_segmenter(), source, tmp_path, lambda number, _: done.append(number))
    assert done == [1, 2, 3, 4]


def test_a_label_that_cannot_be_written_ends_the_pass(target, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        passes.write_pseudo_labels(
            *(small_segmenter(), target, torch.zeros(CLASSES), blocked, CPU, _nothing)
        )
