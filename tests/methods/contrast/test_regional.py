"""The regional loss against naive loops, and the term against known answers from its paper."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.small import REGIONAL
from udaseg.methods.contrast import regional_loss as module
from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regional_loss import regional_loss
from udaseg.methods.views import CUTMIX, TARGET, TARGET_BY_STUDENT_HEAD, CellView, Views
from udaseg.models.projector import to_unit_length


def _case(seed, regions=37, rows=90, channels=8, classes=5):
    generator = torch.Generator().manual_seed(seed)

    def vectors(count):
        return torch.randn(count, channels, generator=generator)

    def labels(count):
        return torch.randint(0, classes, (count,), generator=generator)

    keep = torch.rand(regions, generator=generator) > 0.4
    return vectors(regions), vectors(regions), labels(regions), vectors(rows), labels(rows), keep


def _naive(queries, keys, labels, bank, bank_labels, temperature, keep):
    """Compute the loss with nested loops over queries and bank rows, in float64."""
    queries, keys, bank = (part.double() for part in (queries, keys, bank))
    queries, keys, bank = (part / part.norm(dim=1, keepdim=True) for part in (queries, keys, bank))
    total, count = queries.new_zeros(()), 0
    for index in range(len(queries)):
        if not keep[index]:
            continue
        query = queries[index]
        positive = torch.exp(query @ keys[index] / temperature)
        others = queries.new_zeros(())
        for row in range(len(bank)):
            if bank_labels[row] not in (labels[index], EMPTY):
                others = others + torch.exp(query @ bank[row] / temperature)
        total = total - torch.log(positive / (positive + others))
        count += 1
    return total / max(1, count)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_loss_and_gradient_equal_the_naive_loops(seed, temperature):
    queries, keys, labels, bank, bank_labels, keep = _case(seed)
    bank_labels[::7] = EMPTY
    ours = queries.clone().requires_grad_()
    theirs = queries.double().requires_grad_()
    loss = regional_loss(ours, keys, labels, bank, bank_labels, temperature=temperature, keep=keep)
    expected = _naive(theirs, keys, labels, bank, bank_labels, temperature, keep)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)


def test_the_form_for_a_gpu_which_drops_nothing_gives_the_same(monkeypatch):
    queries, keys, labels, bank, bank_labels, keep = _case(5)
    bank_labels[::7] = EMPTY
    results = []
    for drops in (True, False):
        if not drops:
            monkeypatch.setattr(module, "_counted_indices", lambda _: None)
        ours = queries.clone().requires_grad_()
        loss = regional_loss(ours, keys, labels, bank, bank_labels, temperature=0.1, keep=keep)
        loss.backward()
        results.append((loss.detach(), ours.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


class _Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor created inside the context."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {part.untyped_storage().data_ptr() for part in args if torch.is_tensor(part)}
        if torch.is_tensor(result) and result.untyped_storage().data_ptr() not in inputs:
            self.elements = max(self.elements, result.numel())
        return result


def test_the_memory_of_the_loss_does_not_grow_with_the_bank():
    largest = []
    for rows in (20_000, 80_000):
        queries, keys, labels, bank, bank_labels, keep = _case(0, regions=300, rows=rows)
        with _Largest() as tracker:
            regional_loss(
                queries.requires_grad_(),
                keys,
                labels,
                bank,
                bank_labels,
                temperature=0.1,
                keep=keep,
            )
        largest.append(tracker.elements)
    assert largest[0] == largest[1]


@pytest.mark.parametrize("bank_chunk", [3, 90, 1000])
@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
def test_any_chunk_size_gives_the_dense_loss(monkeypatch, chunk, bank_chunk):
    monkeypatch.setattr(module, "_CHUNKS_CPU", (chunk, bank_chunk))
    queries, keys, labels, bank, bank_labels, keep = _case(3)
    bank_labels[::7] = EMPTY
    ours, theirs = queries.clone().requires_grad_(), queries.double().requires_grad_()
    loss = regional_loss(ours, keys, labels, bank, bank_labels, temperature=0.1, keep=keep)
    expected = _naive(theirs, keys, labels, bank, bank_labels, 0.1, keep)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)


def test_the_chunks_of_a_gpu_give_what_those_of_a_cpu_give(monkeypatch):
    queries, keys, labels, bank, bank_labels, _ = _case(6, regions=600, rows=9000)
    results = []
    for chunks in (module._CHUNKS_CPU, module._CHUNKS_GPU):
        assert (len(queries) > chunks[0]) == (len(bank) > chunks[1]) == (not results)
        monkeypatch.setattr(module, "_CHUNKS_CPU", chunks)
        leaf = queries.clone().requires_grad_()
        loss = regional_loss(leaf, keys, labels, bank, bank_labels, temperature=0.1)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=3e-8)


def test_rows_of_the_anchors_class_do_not_change_the_loss():
    queries, keys, labels, bank, bank_labels, _ = _case(0)
    labels[:] = 2
    before = regional_loss(queries, keys, labels, bank, bank_labels, temperature=0.1)
    bank[bank_labels == 2] = torch.randn(int((bank_labels == 2).sum()), 8)
    assert regional_loss(queries, keys, labels, bank, bank_labels, temperature=0.1) == before


def test_angles_a_human_can_check():
    """One query at 0 degrees, its key at 60, one negative at 90: cosine 0.5 versus cosine 0."""
    angle = math.radians(60)
    loss = regional_loss(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[math.cos(angle), math.sin(angle)]]),
        torch.tensor([0]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([1]),
        temperature=0.5,
    )
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)), abs=1e-6)


@pytest.mark.parametrize("what", ["none_kept", "no_queries", "empty_bank"])
def test_nothing_to_compare_is_exactly_zero_with_a_graph(what):
    queries, keys, labels, bank, bank_labels, keep = _case(1)
    keep = torch.zeros_like(keep) if what == "none_kept" else keep
    if what == "no_queries":
        queries, keys, labels, keep = queries[:0], keys[:0], labels[:0], keep[:0]
    if what == "empty_bank":
        bank_labels = torch.full_like(bank_labels, EMPTY)
    queries.requires_grad_()
    loss = regional_loss(queries, keys, labels, bank, bank_labels, temperature=0.1, keep=keep)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(queries.grad, torch.zeros_like(queries))


@pytest.mark.parametrize("temperature", [1e-3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero", [False, True])
def test_extreme_inputs_stay_finite(temperature, dtype, zero):
    queries, keys, labels, bank, bank_labels, _ = _case(4)
    if zero:
        queries, keys, bank = queries * 0, keys * 0, bank * 0
    queries = queries.to(dtype).requires_grad_()
    loss = regional_loss(
        queries, keys.to(dtype), labels, bank.to(dtype), bank_labels, temperature=temperature
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()
    assert queries.grad.abs().max() <= 1e4


def test_shapes_and_temperature_are_checked():
    queries, keys, labels, bank, bank_labels, _ = _case(0)
    with pytest.raises(ValueError, match="do not match"):
        regional_loss(queries, keys[:-1], labels, bank, bank_labels, temperature=0.1)
    with pytest.raises(ValueError, match="do not match"):
        regional_loss(queries, keys, labels, bank, bank_labels[:-1], temperature=0.1)
    with pytest.raises(ValueError, match="temperature"):
        regional_loss(queries, keys, labels, bank, bank_labels, temperature=0.0)


def _term(channels=8, **changes):
    return RegionalContrast(replace(REGIONAL, **changes), channels=channels)


def _views(step=0, seed=0, progress=0.5, batch=2, side=4, classes=3):
    generator = torch.Generator().manual_seed(1000 + seed + step)

    def view(grad):
        embeddings = to_unit_length(torch.randn(batch, 8, side, side, generator=generator))
        labels = torch.randint(0, classes, (batch, side, side), generator=generator)
        confidence = torch.rand(batch, side, side, generator=generator)
        embeddings.requires_grad_(grad)
        return CellView(embeddings, embeddings, labels, labels, confidence)

    square = torch.zeros(batch, side, side, dtype=torch.bool)
    square[:, 1:, :3] = True
    return Views(
        step,
        progress,
        seed + step,
        {CUTMIX: replace(view(True), square=square), TARGET: view(False)},
    )


def _with_student_head(views, embeddings):
    by_student = replace(views[TARGET], embeddings=embeddings)
    return replace(views, by_name={**views.by_name, TARGET_BY_STUDENT_HEAD: by_student})


def test_weight_follows_the_published_ramp():
    term = _term()
    assert term.weight_at(0, 0.0) == pytest.approx(6.738e-5, rel=1e-4)
    assert term.weight_at(1, 0.5) == pytest.approx(2.312e-3, rel=1e-3)
    assert term.weight_at(2, 1.0) == pytest.approx(0.01)
    assert _term(start=5).weight_at(4, 0.9) == 0
    assert _term(ramp=False).weight_at(0, 0.0) == 0.01


def test_term_equals_the_loops_over_anchors_in_the_square_and_the_memory_to_be():
    term = _term(ramp=False, weight=1.0)
    for step in range(4):
        views = _views(step)
        before = [buffer.clone() for buffer in term.state_dict().values()]
        loss = term(views)
        assert all(
            torch.equal(*pair) for pair in zip(before, term.state_dict().values(), strict=True)
        ), "forward changed the memory"
        assert term(views) == loss
        term.update(views)
        flat = views[CUTMIX].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
        keys = views[TARGET].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
        keep = views[CUTMIX].square.flatten() & (views[TARGET].confidence.flatten() > 0.75)
        bank, bank_labels = term.bank.rows()
        expected = _naive(
            flat, keys, views[TARGET].predictions.flatten(), bank, bank_labels, 0.1, keep
        )
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)


def test_regions_of_four_cells_are_anchors_if_they_are_inside_the_square():
    """Each has the mean vector of its cells, and the label of the most confident of them."""
    term, views = _term(ramp=False, weight=1.0, region_size=2, min_confidence=0.4), _views(side=6)
    square = torch.zeros(2, 6, 6, dtype=torch.bool)
    square[0, 1:5, :4], square[1, 2:, 2:] = True, True
    views.by_name[CUTMIX] = replace(views[CUTMIX], square=square)
    target = views[TARGET]
    queries, keys, labels, keep = [], [], [], []
    for b in range(2):
        for y in range(0, 6, 2):
            for x in range(0, 6, 2):
                cells = slice(y, y + 2), slice(x, x + 2)
                for maps, means in ((views[CUTMIX], queries), (target, keys)):
                    mean = maps.embeddings[b, :, cells[0], cells[1]].detach().mean((1, 2))
                    means.append(mean / mean.norm())
                sure = target.confidence[b][cells].flatten()
                labels.append(target.predictions[b][cells].flatten()[sure.argmax()])
                keep.append(bool(square[b][cells].all()) and sure.mean() > 0.4)
    assert 0 < sum(keep) < int(square.sum()) // 4
    loss = term(views)
    term.update(views)
    rows = (torch.stack(part) for part in (queries, keys, labels))
    expected = _naive(*rows, *term.bank.rows(), 0.1, keep)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)


def test_bank_grows_by_both_views_and_then_keeps_three_steps():
    term = _term()
    sizes = []
    for step in range(4):
        term.update(_views(step))
        sizes.append(len(term.bank))
    assert sizes == [24, 48, 72, 72]


def test_published_sizes_fill_the_bank_as_published():
    term = _term(channels=128, cells_per_view=4000)
    sizes = []
    for step in range(4):
        embeddings = to_unit_length(torch.randn(2, 128, 64, 64))
        labels = torch.zeros(2, 64, 64, dtype=torch.int64)
        view = CellView(embeddings, embeddings, labels, labels, torch.ones(2, 64, 64))
        term.update(Views(step, 0.0, step, {CUTMIX: view, TARGET: view}))
        sizes.append(len(term.bank))
    assert sizes == [8000, 16000, 24000, 24000]


def test_no_confident_anchor_gives_exactly_zero():
    views = _views()
    views[TARGET].confidence.fill_(0.75)
    assert _term()(views).item() == 0


def test_gradient_reaches_the_student_view_and_not_teacher_or_bank():
    term = _term()
    term.update(_views(0))
    views = _views(1)
    views[TARGET].embeddings.requires_grad_()
    term(views).backward()
    assert views[CUTMIX].embeddings.grad.abs().sum() > 0
    outside = ~views[CUTMIX].square[:, None].expand_as(views[CUTMIX].embeddings)
    assert views[CUTMIX].embeddings.grad[outside].abs().sum() == 0
    assert views[TARGET].embeddings.grad is None
    assert not any(buffer.requires_grad for buffer in term.buffers())


def test_ignored_cells_are_negatives_only_in_the_released_form():
    views = _views()
    views[CUTMIX].labels.fill_(255)
    ours, released = _term(), _term(keep_ignored=True)
    ours.update(views)
    released.update(views)
    assert len(ours.bank) == 12
    assert len(released.bank) == 24
    assert (released.bank.labels[0] == 255).sum() == 12


@pytest.mark.parametrize(
    "change", [{"negative_sampling": False}, {"positive_filtering": False}, {"region_size": 2}]
)
def test_each_ablation_switch_changes_the_loss(change):
    views = _views()
    assert _term(ramp=False)(views).item() != _term(ramp=False, **change)(views).item()


def test_student_head_keys_replace_the_momentum_heads():
    term = _term(ramp=False, momentum_head=False)
    views = _views()
    other = to_unit_length(torch.randn_like(views[TARGET].embeddings))
    swapped = _with_student_head(views, other)
    assert term(swapped).item() != _term(ramp=False)(views).item()


def test_with_the_student_head_no_vector_of_the_momentum_head_enters_the_bank():
    term, views = _term(momentum_head=False, cells_per_view=32), _views()
    other = to_unit_length(torch.randn_like(views[TARGET].embeddings))
    term.update(_with_student_head(views, other))
    rows = term.bank.rows()[0]
    flat = other.permute(0, 2, 3, 1).flatten(0, 2)
    momentum = views[TARGET].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(flat, rows).min(1).values.max() < 1e-3
    assert torch.cdist(momentum, rows).min(1).values.min() > 1e-3


def test_without_negative_sampling_rows_of_every_class_count():
    views = _views()
    term = _term(ramp=False, weight=1.0, negative_sampling=False)
    queries = views[CUTMIX].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    keys = views[TARGET].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    keep = views[CUTMIX].square.flatten() & (views[TARGET].confidence.flatten() > 0.75)
    loss = term(views)
    term.update(views)
    bank, bank_labels = term.bank.rows()
    unmatched = torch.full_like(views[TARGET].predictions.flatten(), -2)
    assert loss.item() == pytest.approx(
        _naive(queries, keys, unmatched, bank, bank_labels, 0.1, keep).item(), abs=1e-6
    )
