"""Class moments and running statistics against naive loops in float64."""

import threading

import pytest
import torch

from udaseg.methods.contrast import class_statistics as module
from udaseg.methods.contrast.class_statistics import ClassStatistics, class_moments

CLASSES, CHANNELS = 5, 6


def _case(seed, count=50):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 1 + 3 * torch.randn(count, CHANNELS, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < 0.2] = 255
    return embeddings, labels


def _naive(embeddings, labels, weights=None):
    """Return counts, means and population variances; `weights` holds one weight per vector."""
    weights = torch.ones(len(labels)) if weights is None else weights
    counts = torch.zeros(CLASSES).double()
    means, variances = torch.zeros(2, CLASSES, CHANNELS).double()
    for k in range(CLASSES):
        mine = [
            (vector.double() / vector.double().norm(), weight.double())
            for vector, label, weight in zip(embeddings, labels, weights, strict=True)
            if label == k
        ]
        counts[k] = sum(weight for _, weight in mine)
        if mine:
            means[k] = sum(weight * vector for vector, weight in mine) / counts[k]
            spread = sum(weight * (vector - means[k]) ** 2 for vector, weight in mine)
            variances[k] = spread / counts[k]
    return counts, means, variances


def _same(state, expected):
    counts, means, variances = expected
    assert torch.allclose(state.counts.double(), counts)
    assert torch.allclose(state.means.double(), means, atol=1e-6)
    assert torch.allclose(state.variances.double(), variances, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_moments_equal_the_naive_loops(monkeypatch, seed, chunk):
    monkeypatch.setattr(module, "rows_at_once", lambda _width, _device: chunk)
    embeddings, labels = _case(seed)
    counts, means, variances = class_moments(embeddings, labels, CLASSES)
    expected = _naive(embeddings, labels)
    assert counts.tolist() == expected[0].tolist()
    assert torch.allclose(means.double(), expected[1], atol=1e-6)
    assert torch.allclose(variances.double(), expected[2], atol=1e-6)


def test_the_variance_of_a_tight_class_keeps_its_digits():
    embeddings = torch.ones(64, CHANNELS) + 1e-4 * _case(0, 64)[0]
    labels = torch.zeros(64, dtype=torch.int64)
    variances = class_moments(embeddings, labels, CLASSES)[2][0]
    expected = _naive(embeddings, labels)[2][0]
    assert expected.max() < 1e-7
    assert torch.allclose(variances.double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("what", ["empty", "ignored", "zero", "one class", "bf16"])
def test_any_input_stays_finite(what):
    embeddings, labels = _case(1)
    if what == "empty":
        embeddings, labels = embeddings[:0], labels[:0]
    elif what == "ignored":
        labels = torch.full_like(labels, 255)
    elif what == "zero":
        embeddings = embeddings * 0
    elif what == "one class":
        labels = torch.zeros_like(labels)
    elif what == "bf16":
        embeddings = embeddings.bfloat16()
    parts = class_moments(embeddings, labels, CLASSES)
    assert all(torch.isfinite(part).all() for part in parts)
    assert all(part.dtype == torch.float32 for part in parts)
    if what in ("empty", "ignored"):
        assert not any(part.any() for part in parts)
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=1.0, bank_rows=2)
    memory.update(embeddings, labels)
    assert all(torch.isfinite(buffer).all() for buffer in memory.buffers())


@pytest.mark.parametrize("cuts", [[], [1], [20], [3, 4, 30], list(range(1, 60))])
def test_statistics_are_those_of_all_vectors_however_they_were_split(cuts):
    embeddings, labels = _case(2, 60)
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=1.0)
    for start, end in zip([0, *cuts], [*cuts, 60], strict=True):
        memory.update(embeddings[start:end], labels[start:end])
    _same(memory, _naive(embeddings, labels))
    assert memory.seen.tolist() == [True] * CLASSES


def test_with_a_momentum_old_vectors_weigh_less_at_each_batch_that_holds_their_class():
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=0.5)
    embeddings, labels, weights = torch.empty(0, CHANNELS), torch.empty(0), torch.empty(0)
    for seed in range(6):
        new, new_labels = _case(seed, 7)
        weights = torch.where(torch.isin(labels, new_labels), 0.5 * weights, weights)
        embeddings, labels = torch.cat([embeddings, new]), torch.cat([labels, new_labels])
        weights = torch.cat([weights, torch.ones(7)])
        memory.update(new, new_labels)
        _same(memory, _naive(embeddings, labels, weights))


def test_the_first_batch_of_a_class_is_its_statistics_whatever_the_momentum():
    embeddings, labels = _case(3)
    for momentum in (0.0, 0.999):
        memory = ClassStatistics(CLASSES, CHANNELS, momentum=momentum)
        memory.update(embeddings, labels)
        _same(memory, _naive(embeddings, labels))


def test_a_class_that_is_absent_stays_bit_for_bit():
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=2)
    memory.update(*_case(0))
    before = {name: value[4].clone() for name, value in memory.state_dict().items()}
    for seed in range(1, 4):
        embeddings, labels = _case(seed)
        memory.update(embeddings, labels.masked_fill(labels == 4, 255))
    assert all(torch.equal(value[4], before[name]) for name, value in memory.state_dict().items())


def test_after_foretells_the_update_and_changes_nothing():
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=3)
    for seed in range(5):
        embeddings, labels = _case(seed, 6)
        before = {name: value.clone() for name, value in memory.state_dict().items()}
        state = memory.preview_update(embeddings.requires_grad_(), labels)
        assert all(torch.equal(before[name], value) for name, value in memory.named_buffers())
        memory.update(embeddings, labels)
        for name, value in memory.named_buffers():
            assert torch.equal(getattr(state, name), value)
            assert not value.requires_grad


def test_a_copy_that_foretold_an_update_can_be_taken_over():
    memories = [ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=3) for _ in range(2)]
    for seed in range(3):
        embeddings, labels = _case(seed, 6)
        held = dict(memories[0].named_buffers())
        memories[0].become(memories[0].preview_update(embeddings, labels))
        memories[1].update(embeddings, labels)
        for name, value in memories[1].named_buffers():
            assert torch.equal(memories[0].get_buffer(name), value)
            assert memories[0].get_buffer(name) is held[name], "a buffer was replaced"


def test_the_bank_keeps_the_newest_batch_means_of_each_class():
    length = 3
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=1.0, bank_rows=length)
    model = [[] for _ in range(CLASSES)]
    for seed in range(12):
        embeddings, labels = _case(seed, 4)
        counts, means, _ = class_moments(embeddings, labels, CLASSES)
        for k in range(CLASSES):
            if counts[k]:
                model[k] = [*model[k], means[k].tolist()][-length:]
        memory.update(embeddings, labels)
        for k in range(CLASSES):
            filled = int(memory.filled[k])
            assert sorted(memory.rows[k, :filled].tolist()) == sorted(model[k])
    assert memory.filled.tolist() == [length] * CLASSES, "some class never went around"


def test_its_state_dict_is_its_whole_memory():
    memory = ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=2)
    assert set(memory.state_dict()) == {
        "means",
        "variances",
        "counts",
        "seen",
        "rows",
        "cursor",
        "filled",
    }
    assert not {name for name, value in vars(memory).items() if torch.is_tensor(value)}
    for seed in range(3):
        memory.update(*_case(seed, 6))
    restored = ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=2)
    restored.load_state_dict(memory.state_dict())
    for one in (memory, restored):
        one.update(*_case(9, 6))
    for name, value in memory.named_buffers():
        assert torch.equal(restored.get_buffer(name), value)


def test_two_ranks_learn_what_one_process_learns_from_both(monkeypatch):
    embeddings, labels = _case(4, 60)
    alone = ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=2)
    ranks = [ClassStatistics(CLASSES, CHANNELS, momentum=0.9, bank_rows=2) for _ in range(2)]
    for start in (0, 30):
        alone.update(embeddings[start : start + 30], labels[start : start + 30])
    barrier, shown = threading.Barrier(2, timeout=20), {}

    def summed(value):
        shown[threading.current_thread().name] = value
        barrier.wait()
        total = shown["0"] + shown["1"]
        barrier.wait()
        return total

    def train(rank):
        for start in (0, 30):
            part = slice(start + (0, 11)[rank], start + (11, 30)[rank])
            ranks[rank].update(embeddings[part], labels[part])

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "rank", lambda: int(threading.current_thread().name))
    monkeypatch.setattr(module, "all_reduce_sum", summed)
    threads = [threading.Thread(target=train, args=(rank,), name=str(rank)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, value in alone.named_buffers():
        assert torch.allclose(ranks[0].get_buffer(name).double(), value.double(), atol=1e-6)
        assert torch.equal(ranks[0].get_buffer(name), ranks[1].get_buffer(name))


@pytest.mark.parametrize(
    "arguments", [{"momentum": 1.1}, {"momentum": -0.1}, {"momentum": 1.0, "bank_rows": -1}]
)
def test_what_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        ClassStatistics(CLASSES, CHANNELS, **arguments)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        class_moments(torch.zeros(3, 2), torch.zeros(4), CLASSES)
