"""SPCL's loss and prototypes against naive loops and known answers from the paper."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.small import PROTOTYPES
from udaseg.methods.contrast import class_losses as module
from udaseg.methods.contrast import prototypes as prototypes_module
from udaseg.methods.contrast.class_losses import prototype_loss
from udaseg.methods.contrast.prototypes import ClassPrototypes, PrototypeContrast, class_sums
from udaseg.methods.views import MIXED, SOURCE, CellView, Views
from udaseg.models.projector import to_unit_length


def _case(seed, count=50, channels=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(count, channels, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < 0.2] = 255
    prototypes = to_unit_length(torch.randn(classes, channels, generator=generator))
    seen = torch.rand(classes, generator=generator) < 0.7
    return embeddings, labels, prototypes, seen


def _naive(embeddings, labels, prototypes, seen, temperature):
    total, count = embeddings.double().new_zeros(()), 0
    for vector, label in zip(embeddings.double(), labels.tolist(), strict=True):
        if label == 255 or not seen[label]:
            continue
        query = vector / vector.norm()
        scores = {
            k: query @ prototypes[k].double() / temperature for k in range(len(seen)) if seen[k]
        }
        total = total + torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[label]
        count += 1
    return total / max(1, count)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_loss_and_gradient_equal_the_naive_loops(monkeypatch, seed, temperature, chunk):
    monkeypatch.setattr(module, "rows_at_once", lambda _width, _device: chunk)
    embeddings, labels, prototypes, seen = _case(seed)
    ours = embeddings.clone().requires_grad_()
    theirs = embeddings.double().requires_grad_()
    loss = prototype_loss(ours, labels, prototypes, seen, temperature=temperature)
    expected = _naive(theirs, labels, prototypes, seen, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)


def test_at_temperature_100_with_19_classes_the_loss_moves_in_the_published_band():
    generator = torch.Generator().manual_seed(0)
    prototypes = to_unit_length(torch.randn(19, 64, generator=generator))
    seen = torch.ones(19, dtype=torch.bool)
    for direction in (1, -1):
        loss = prototype_loss(
            direction * prototypes, torch.arange(19), prototypes, seen, temperature=100.0
        )
        assert 2.9255 <= loss.item() <= 2.9635


def test_prototypes_that_were_never_seen_enter_no_denominator():
    embeddings, labels, prototypes, seen = _case(3)
    before = prototype_loss(embeddings, labels, prototypes, seen, temperature=0.1)
    prototypes[~seen] = 1e6
    assert prototype_loss(embeddings, labels, prototypes, seen, temperature=0.1) == before


@pytest.mark.parametrize("what", ["empty", "ignored", "unseen", "zero", "one class", "bf16"])
@pytest.mark.parametrize("temperature", [1e-3, 100.0])
def test_any_input_stays_finite(what, temperature):
    embeddings, labels, prototypes, seen = _case(1)
    if what == "empty":
        embeddings, labels = embeddings[:0], labels[:0]
    elif what == "ignored":
        labels = torch.full_like(labels, 255)
    elif what == "unseen":
        seen = torch.zeros_like(seen)
    elif what == "zero":
        embeddings = embeddings * 0
    elif what == "one class":
        labels, seen = torch.zeros_like(labels), torch.arange(5) == 0
    embeddings = embeddings.to(torch.bfloat16 if what == "bf16" else torch.float32)
    embeddings.requires_grad_()
    loss = prototype_loss(embeddings, labels, prototypes, seen, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()
    if what in ("empty", "ignored", "unseen"):
        assert loss.item() == 0
        assert not embeddings.grad.any()


def test_the_gradient_of_bf16_features_is_rounded_once():
    embeddings, labels, prototypes, seen = _case(2, count=300)
    gradients = []
    for features in (embeddings.bfloat16(), embeddings.bfloat16().float()):
        loss = prototype_loss(features.requires_grad_(), labels, prototypes, seen, temperature=0.1)
        (0.37 * loss).backward()
        gradients.append(features.grad)
    assert torch.equal(gradients[0], gradients[1].bfloat16())


@pytest.mark.parametrize("chunk", [7, 25, 4096])
def test_class_sums_equal_the_naive_loops(monkeypatch, chunk):
    monkeypatch.setattr(prototypes_module, "rows_at_once", lambda _width, _device: chunk)
    embeddings, labels, *_ = _case(1)
    sums, counts = class_sums(embeddings, labels, 5)
    for k in range(5):
        mine = [
            F.normalize(v.double(), dim=0)
            for v, y in zip(embeddings, labels, strict=True)
            if y == k
        ]
        assert counts[k] == len(mine)
        assert torch.allclose(sums[k].double(), torch.stack(mine).sum(0), atol=1e-5)


def _bank(absent="keep", momentum=0.999, normalise=True):
    return ClassPrototypes(5, 6, momentum=momentum, absent=absent, normalise=normalise)


def test_ours_leaves_an_absent_class_bit_for_bit():
    bank = _bank()
    embeddings, labels, *_ = _case(0)
    bank.update(embeddings, labels)
    before = bank.means[4].clone()
    for seed in range(3):
        embeddings, labels, *_ = _case(seed + 1)
        bank.update(embeddings, labels.masked_fill(labels == 4, 255))
    assert torch.equal(bank.means[4], before)


def test_the_release_fades_an_absent_class_by_ten_each_step():
    bank = _bank("fade", 0.1, normalise=False)
    embeddings, labels, *_ = _case(0)
    bank.update(embeddings, labels)
    before = bank.means[4].norm()
    for seed in range(3):
        embeddings, labels, *_ = _case(seed + 1)
        bank.update(embeddings, labels.masked_fill(labels == 4, 255))
    assert bank.means[4].norm().item() == pytest.approx(1e-3 * before.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("momentum", "absent", "normalise"), [(0.999, "keep", True), (0.1, "fade", False)]
)
def test_updates_follow_the_formula_over_several_steps(momentum, absent, normalise):
    bank = _bank(absent, momentum, normalise)
    means, seen = torch.zeros(5, 6).double(), [False] * 5
    for seed in range(6):
        embeddings, labels, *_ = _case(seed, count=8)
        for k in range(5):
            mine = [
                F.normalize(v.double(), dim=0)
                for v, y in zip(embeddings, labels, strict=True)
                if y == k
            ]
            if not mine and absent == "keep":
                continue
            mean = torch.stack(mine).mean(0) if mine else torch.zeros(6).double()
            first = bool(mine) and not seen[k]
            means[k] = mean if first else momentum * means[k] + (1 - momentum) * mean
            if normalise:
                means[k] = F.normalize(means[k], dim=0)
            seen[k] = seen[k] or bool(mine)
        foretold = bank.preview_update(embeddings, labels)
        bank.update(embeddings, labels)
        assert torch.equal(foretold[0], bank.means)
        assert torch.equal(foretold[1], bank.seen)
        assert torch.allclose(bank.means.double(), means, atol=1e-5)
        assert bank.seen.tolist() == seen


def test_its_state_dict_is_its_whole_memory():
    assert set(_bank().state_dict()) == {"means", "seen"}


def test_the_term_counts_source_cells_that_are_predicted_right():
    generator = torch.Generator().manual_seed(0)

    def view(right):
        features = torch.randn(1, 6, 3, 4, generator=generator).requires_grad_()
        labels = torch.randint(0, 5, (1, 3, 4), generator=generator)
        return CellView(features, None, labels, labels if right else (labels + 1) % 5, labels * 0.0)

    spec = replace(PROTOTYPES, momentum=0.999)
    term = PrototypeContrast(spec, num_classes=5, channels=6)
    wrong = Views(0, 0.0, 0, {SOURCE: view(right=False), MIXED: view(right=True)})
    assert term(wrong).item() == 0, "nothing is right, so there is no prototype to compare with"
    views = Views(0, 0.0, 0, {SOURCE: view(right=True), MIXED: view(right=True)})
    before = {name: value.clone() for name, value in term.state_dict().items()}
    loss = term(views)
    assert all(torch.equal(before[name], value) for name, value in term.state_dict().items())
    loss.backward()
    assert views[SOURCE].features.grad.any()
    assert views[MIXED].features.grad.any()
    term.update(views)
    assert term.prototypes.seen.any()
    assert term(views).item() != loss.item()


def test_mixed_cells_count_where_the_teacher_is_sure_of_them():
    def views(trust):
        generator = torch.Generator().manual_seed(4)
        maps = [torch.randn(1, 6, 2, 3, generator=generator) for _ in range(2)]
        labels = torch.arange(6).view(1, 2, 3) % 5
        source, mixed = (CellView(m, None, labels, labels, labels * 0.0) for m in maps)
        mixed = replace(mixed, label_confidence=trust)
        return Views(0, 0.0, 0, {SOURCE: source, MIXED: mixed})

    def term(least, second=MIXED):
        spec = replace(PROTOTYPES, min_confidence=least)
        return PrototypeContrast(spec, num_classes=5, channels=6, second_view=second)

    trust = torch.tensor([[[0.95, 0.9, 0.2], [1.0, 0.89, 0.0]]])
    all_cells, some = term(0.0)(views(trust)), term(0.9)(views(trust))
    one = views(trust)
    labels = one[MIXED].labels.masked_fill(trust < 0.9, 255)
    mixed = replace(one[MIXED], labels=labels)
    one = replace(one, by_name={**one.by_name, MIXED: mixed})
    assert some.item() == pytest.approx(term(0.0)(one).item(), rel=1e-6)
    assert some.item() != all_cells.item()
