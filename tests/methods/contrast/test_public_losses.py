"""The losses as people call them: any length of vectors, and NTXentLoss of another library."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss

from udaseg.losses import bank_loss, distribution_loss, prototype_loss, regional_loss


def _numbers(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pairs(anchors, labels, bank_labels):
    """Return the pairs of NTXentLoss: each anchor with its key and with rows of other classes."""
    each = torch.arange(anchors)
    anchor, row = (labels[:, None] != bank_labels).nonzero(as_tuple=True)
    return each, each, anchor, anchors + row


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("channels", [2, 128])
def test_the_regional_loss_is_ntxent_with_these_pairs(temperature, channels):
    queries, keys, bank = (
        3 * _numbers(rows, channels, seed=seed) for seed, rows in enumerate((20, 20, 50))
    )
    labels, bank_labels = torch.arange(20) % 4, torch.arange(50) % 5
    ours, theirs = queries.clone().requires_grad_(), queries.double().requires_grad_()
    loss = regional_loss(ours, keys, labels, bank, bank_labels, temperature=temperature)
    expected = NTXentLoss(temperature=temperature)(
        theirs,
        indices_tuple=_pairs(20, labels, bank_labels),
        ref_emb=torch.cat([keys, bank]).double(),
    )
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_prototype_loss_is_ntxent_with_one_reference_a_class(temperature):
    embeddings = 3 * _numbers(20, 16, seed=0)
    prototypes = F.normalize(_numbers(5, 16, seed=1), dim=1)
    labels, classes = torch.arange(20) % 5, torch.arange(5)
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.double().requires_grad_()
    seen = torch.ones(5, dtype=torch.bool)
    loss = prototype_loss(ours, labels, prototypes, seen, temperature=temperature)
    anchor, other = (labels[:, None] != classes).nonzero(as_tuple=True)
    expected = NTXentLoss(temperature=temperature)(
        theirs,
        indices_tuple=(torch.arange(20), labels, anchor, other),
        ref_emb=prototypes.double(),
    )
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def _regional(queries, lengths):
    keys, bank = (_numbers(rows, 8, seed=rows) * lengths for rows in (12, 30))
    labels, bank_labels = torch.arange(12) % 3, torch.arange(30) % 3
    return regional_loss(queries, keys, labels, bank, bank_labels, temperature=0.1)


LOSSES = {
    "regional": _regional,
    "prototype": lambda queries, _: prototype_loss(
        queries, torch.arange(12) % 3, *_classes(), temperature=0.1
    ),
    "distribution": lambda queries, _: distribution_loss(
        queries,
        torch.arange(12) % 3,
        _classes()[0],
        _classes()[0].abs(),
        _classes()[1],
        temperature=0.5,
    ),
    "bank": lambda queries, _: bank_loss(
        queries,
        torch.arange(12) % 3,
        _numbers(3, 4, 8, seed=6),
        torch.tensor([4, 2, 1]),
        temperature=0.1,
    ),
}


def _classes():
    return _numbers(3, 8, seed=5), torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("name", LOSSES)
def test_the_length_of_a_vector_changes_no_loss_and_only_the_scale_of_its_gradient(name):
    found = []
    for length in (1.0, 7.0):
        queries = (_numbers(12, 8, seed=0) * length).requires_grad_()
        loss = LOSSES[name](queries, length)
        loss.backward()
        along = (queries.grad * queries).sum(1) / queries.norm(dim=1)
        assert along.abs().max() < 1e-5, "the gradient changes the length"
        found.append((loss.item(), queries.grad * length))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
