"""SePiCo's losses against naive loops in float64."""

import pytest
import torch
import torch.nn.functional as F

from udaseg.methods.contrast import class_losses as module
from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss, prototype_loss
from udaseg.models.projector import to_unit_length

CLASSES, CHANNELS, ROWS = 5, 6, 4


def _case(seed, count=50):
    """Return embeddings, labels, means, variances, seen, rows and filled."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    embeddings = 3 * random(count, CHANNELS)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < 0.2] = 255
    means, variances = (
        0.8 * to_unit_length(random(CLASSES, CHANNELS)),
        0.1 * random(CLASSES, CHANNELS) ** 2,
    )
    seen = torch.rand(CLASSES, generator=generator) < 0.7
    rows = to_unit_length(random(CLASSES * ROWS, CHANNELS)).view(CLASSES, ROWS, CHANNELS)
    filled = torch.randint(0, ROWS + 1, (CLASSES,), generator=generator)
    return embeddings, labels, (means, variances, seen), (rows, filled)


def _naive_distribution(query, label, means, variances, seen, temperature):
    if not seen[label]:
        return None
    score = {
        k: query @ means[k].double() / temperature
        + (query * query) @ variances[k].double() / (2 * temperature**2)
        for k in range(CLASSES)
        if seen[k]
    }
    positive = query @ means[label].double() / temperature
    return torch.logsumexp(torch.stack(list(score.values())), 0) - positive


def _naive_bank(query, label, rows, filled, temperature):
    if not filled[label]:
        return None
    held = [rows[k, : int(filled[k])].double() for k in range(CLASSES)]
    others = [
        torch.exp((held[k] @ query).mean() / temperature)
        for k in range(CLASSES)
        if k != label and len(held[k])
    ]
    positives = [torch.exp(row @ query / temperature) for row in held[label]]
    each = [-torch.log(positive / (positive + sum(others))) for positive in positives]
    return torch.stack(each).mean()


def _naive(term, embeddings, labels, *memory):
    total, count = embeddings.double().new_zeros(()), 0
    for vector, label in zip(embeddings.double(), labels.tolist(), strict=True):
        if label != 255:
            part = term(vector / vector.norm(), label, *memory)
            if part is not None:
                total, count = total + part, count + 1
    return total / max(1, count)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("variant", ["distribution", "bank", "bank at once"])
def test_loss_and_gradient_equal_the_naive_loops(monkeypatch, seed, temperature, chunk, variant):
    monkeypatch.setattr(module, "rows_at_once", lambda _width, _device: chunk)
    if variant == "bank at once":
        monkeypatch.setattr(module, "_positives_by_class", module._positives_at_once)
    embeddings, labels, distribution, bank = _case(seed, 30)
    ours = embeddings.clone().requires_grad_()
    theirs = embeddings.double().requires_grad_()
    if variant == "distribution":
        loss = distribution_loss(ours, labels, *distribution, temperature=temperature)
        expected = _naive(_naive_distribution, theirs, labels, *distribution, temperature)
    else:
        loss = bank_loss(ours, labels, *bank, temperature=temperature)
        expected = _naive(_naive_bank, theirs, labels, *bank, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)
    assert ours.grad.any()


def test_the_bank_for_a_gpu_gives_what_the_bank_by_class_gives(monkeypatch):
    embeddings, labels, _, bank = _case(2, 200)
    results = []
    for form in (module._positives_by_class, module._positives_at_once):
        monkeypatch.setattr(module, "_positives_by_class", form)
        leaf = embeddings.clone().requires_grad_()
        loss = bank_loss(leaf, labels, *bank, temperature=0.1)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.1, 100.0])
def test_without_variance_the_distribution_is_its_prototype(seed, temperature):
    embeddings, labels, (means, variances, seen), _ = _case(seed)
    gradients = []
    for variance in (None, variances * 0):
        leaf = embeddings.clone().requires_grad_()
        if variance is None:
            loss = prototype_loss(leaf, labels, means, seen, temperature=temperature)
        else:
            loss = distribution_loss(leaf, labels, means, variance, seen, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append((loss.detach(), gradient))
    assert torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-6)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-7)


def test_the_distribution_bounds_the_contrast_with_samples_of_it():
    """By Jensen, the mean cross-entropy over samples of the class Gaussians is at most the loss."""
    embeddings, labels, (means, variances, _), _ = _case(0, 10)
    embeddings, labels, t = to_unit_length(embeddings), labels.clamp_max(4), 0.5
    seen = torch.ones(CLASSES, dtype=torch.bool)
    bound = distribution_loss(embeddings, labels, means, variances, seen, temperature=t)
    noise = torch.randn(20_000, CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0))
    keys = means + variances.sqrt() * noise
    # expected sum over negatives and positives, for each sample of the positive
    level = torch.einsum("nd,skd->snk", embeddings, keys) / t
    total = level.exp().mean(0).sum(1).log()
    positive_score = level.mean(0).gather(1, labels[:, None])[:, 0]
    assert bound.item() == pytest.approx((total - positive_score).mean().item(), abs=0.02)
    sampled = F.cross_entropy(level.flatten(0, 1), labels.repeat(len(noise)))
    assert bound > sampled


def _gradients(temperature):
    """Return the gradients of the variants, with statistics from the same 40 samples per class."""
    generator = torch.Generator().manual_seed(0)
    centres = to_unit_length(torch.randn(19, 1, 512, generator=generator), dim=2)
    # each channel of a class has another variance: equal variances only scale a vector
    noise = torch.randn(19, 40, 512, generator=generator) * torch.rand(
        19, 1, 512, generator=generator
    )
    rows = to_unit_length(centres + 0.06 * noise, dim=2)
    means, variances = rows.mean(1), rows.var(1, correction=0)
    embeddings = to_unit_length(torch.randn(64, 512, generator=generator))
    labels = torch.randint(0, 19, (64,), generator=generator)
    seen, filled = torch.ones(19, dtype=torch.bool), torch.full((19,), 40)
    leaf = embeddings.requires_grad_()
    losses = (
        prototype_loss(leaf, labels, means, seen, temperature=temperature),
        bank_loss(leaf, labels, rows, filled, temperature=temperature),
        distribution_loss(leaf, labels, means, variances, seen, temperature=temperature),
    )
    return [torch.autograd.grad(loss, leaf)[0] for loss in losses]


@pytest.mark.parametrize("other", [1, 2])
def test_at_temperature_100_the_variants_have_one_gradient_and_at_a_tenth_they_differ(other):
    def apart(temperature):
        gradients = _gradients(temperature)
        return ((gradients[other] - gradients[0]).norm() / gradients[0].norm()).item()

    assert apart(100.0) < 3e-5
    assert apart(0.1) > 1e-3


@pytest.mark.parametrize("variant", ["distribution", "bank", "bank at once"])
@pytest.mark.parametrize("what", ["empty", "ignored", "unseen", "zero", "one class", "bf16"])
@pytest.mark.parametrize("temperature", [1e-3, 100.0])
def test_any_input_stays_finite(monkeypatch, what, temperature, variant):
    if variant == "bank at once":
        monkeypatch.setattr(module, "_positives_by_class", module._positives_at_once)
    embeddings, labels, (means, variances, seen), (rows, filled) = _case(1)
    if what == "empty":
        embeddings, labels = embeddings[:0], labels[:0]
    elif what == "ignored":
        labels = torch.full_like(labels, 255)
    elif what == "unseen":
        seen, filled = torch.zeros_like(seen), filled * 0
    elif what == "zero":
        embeddings = embeddings * 0
    elif what == "one class":
        labels, seen = torch.zeros_like(labels), torch.arange(CLASSES) == 0
        filled = ROWS * seen
    embeddings = embeddings.to(torch.bfloat16 if what == "bf16" else torch.float32)
    embeddings.requires_grad_()
    if "bank" in variant:
        loss = bank_loss(embeddings, labels, rows, filled, temperature=temperature)
    else:
        loss = distribution_loss(
            embeddings, labels, means, variances, seen, temperature=temperature
        )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.dtype == embeddings.dtype
    if what in ("empty", "ignored", "unseen"):
        assert loss.item() == 0
        assert not embeddings.grad.any()


def test_what_was_never_seen_enters_no_denominator():
    embeddings, labels, (means, variances, seen), (rows, filled) = _case(3)
    filled[0], seen[0] = 0, False

    def both():
        return (
            distribution_loss(embeddings, labels, means, variances, seen, temperature=0.1),
            bank_loss(embeddings, labels, rows, filled, temperature=0.1),
        )

    before = both()
    means[~seen], variances[~seen] = 1e6, 1e6
    rows[torch.arange(ROWS) >= filled[:, None]] = torch.nan
    assert both() == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("variant", ["distribution", "bank"])
def test_what_is_not_finite_is_not_hidden(variant, bad):
    embeddings, labels, (means, variances, seen), (rows, filled) = _case(0)
    labels[3] = 0
    seen[0] = True
    filled[0] = True
    embeddings[3, 1] = bad
    if variant == "distribution":
        loss = distribution_loss(embeddings, labels, means, variances, seen, temperature=0.1)
    else:
        loss = bank_loss(embeddings, labels, rows, filled, temperature=0.1)
    assert not torch.isfinite(loss)


def test_only_embeddings_get_a_gradient():
    embeddings, labels, (means, variances, seen), (rows, filled) = _case(0)
    for leaf in (embeddings, means, variances, rows):
        leaf.requires_grad_()
    loss = distribution_loss(embeddings, labels, means, variances, seen, temperature=1.0)
    (loss + bank_loss(embeddings, labels, rows, filled, temperature=1.0)).backward()
    assert embeddings.grad is not None
    assert means.grad is variances.grad is rows.grad is None


def test_what_does_not_fit_is_refused():
    embeddings, labels, (means, variances, seen), (rows, filled) = _case(0)
    with pytest.raises(ValueError, match="do not match"):
        distribution_loss(embeddings, labels[1:], means, variances, seen, temperature=1.0)
    with pytest.raises(ValueError, match="variances"):
        distribution_loss(embeddings, labels, means, variances[1:], seen, temperature=1.0)
    with pytest.raises(ValueError, match="5 classes"):
        distribution_loss(embeddings, labels, means, variances, seen[1:], temperature=1.0)
    with pytest.raises(ValueError, match="do not match"):
        bank_loss(embeddings, labels, rows[..., 1:], filled, temperature=1.0)
    with pytest.raises(ValueError, match="temperature"):
        bank_loss(embeddings, labels, rows, filled, temperature=0.0)
