"""SePiCo's term: its pairs, its counts and its memory."""

from dataclasses import replace

import pytest
import torch

from tests.support.small import SEMANTIC
from udaseg.errors import UdasegError
from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss, prototype_loss
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.views import MIXED, SOURCE, TEACHER_SOURCE, CellView, Views
from udaseg.models.projector import to_unit_length

CLASSES, CHANNELS = 5, 6


def _view(seed, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    embeddings = to_unit_length(torch.randn(2, CHANNELS, 3, 4, generator=generator))
    labels = torch.randint(0, CLASSES, (2, 3, 4), generator=generator)
    labels[0, 0, 0] = 255
    return CellView(
        embeddings, embeddings.requires_grad_(requires_grad), labels, labels, labels * 0.0
    )


def _views(first=0):
    views = _view(first), _view(first + 1), _view(first + 2, requires_grad=False)
    return _named(*views)


def _named(source, mixed, teacher):
    return Views(0, 0.0, 0, {SOURCE: source, MIXED: mixed, TEACHER_SOURCE: teacher})


def _term(variant, weight=1.0, bank_rows=3, start=0):
    spec = replace(SEMANTIC, variant=variant, weight=weight, bank_rows=bank_rows, start=start)
    return SemanticContrast(replace(spec, channels=CHANNELS), num_classes=CLASSES)


def _flat(view):
    return view.embeddings.permute(0, 2, 3, 1).reshape(-1, CHANNELS), view.labels.flatten()


@pytest.mark.parametrize("variant", ["prototype", "bank", "distribution"])
def test_the_term_is_the_weighted_loss_of_both_views_against_the_statistics_to_be(variant):
    term = _term(variant, weight=2.0)
    term.update(_views(10))
    views = _views()
    before = {name: value.clone() for name, value in term.state_dict().items()}
    loss = term(views)
    assert all(torch.equal(before[name], value) for name, value in term.state_dict().items())
    term.update(views)
    held, expected = term.statistics, 0.0
    for view in (views[SOURCE], views[MIXED]):
        cells = _flat(view)
        if variant == "prototype":
            part = prototype_loss(*cells, held.means, held.seen, temperature=0.1)
        elif variant == "bank":
            part = bank_loss(*cells, held.rows, held.filled, temperature=0.1)
        else:
            part = distribution_loss(*cells, held.means, held.variances, held.seen, temperature=0.1)
        expected += 2.0 * part.item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for view in (views[SOURCE], views[MIXED]):
        assert view.embeddings.grad.any()
        assert not view.embeddings.grad[0, :, 0, 0].any(), "an ignored cell counted"
    assert views[TEACHER_SOURCE].embeddings.grad is None


@pytest.mark.parametrize("variant", ["prototype", "bank", "distribution"])
def test_its_state_dict_is_its_whole_memory(variant):
    term = _term(variant)
    for first in (0, 3):
        term.update(_views(first))
    restored = _term(variant)
    restored.load_state_dict(term.state_dict())
    assert restored(_views(6)).item() == term(_views(6)).item()
    assert not list(term.parameters())
    assert term.statistics.rows.shape[1] == (3 if variant == "bank" else 0)


def test_it_learns_from_the_teacher_alone():
    term, other = _term("distribution"), _term("distribution")
    views = _views()
    term.update(views)
    other.update(_named(views[MIXED], views[SOURCE], views[TEACHER_SOURCE]))
    for name, value in term.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_before_its_start_it_learns_and_asks_for_nothing():
    term, views = _term("prototype", start=1), _views()
    loss = term(views)
    loss.backward()
    assert loss.item() == 0
    assert views[SOURCE].embeddings.grad is not None, "the head left the graph"
    assert not views[SOURCE].embeddings.grad.any()
    term.update(views)
    assert term.statistics.seen.any()
    assert term(replace(_views(), step=1)).item() > 0


def test_a_view_without_labels_has_no_loss():
    term = SemanticContrast(
        replace(SEMANTIC, channels=CHANNELS, mean_weight=1.0), num_classes=CLASSES
    )
    views = _views()
    void = torch.full_like(views[MIXED].labels, 255)
    views.by_name[MIXED] = replace(views[MIXED], labels=void)
    assert term.view_loss(MIXED, views).item() == 0
    assert term.view_loss(SOURCE, views).item() != 0


def test_missing_views_embeddings_and_rows_are_told():
    term, view = _term("prototype"), _view(0)
    with pytest.raises(UdasegError, match="teacher"):
        term(Views(0, 0.0, 0, {SOURCE: view, MIXED: view}))
    bare = CellView(view.features, None, view.labels, view.predictions, view.confidence)
    with pytest.raises(UdasegError, match="embeddings"):
        term(_named(view, view, bare))
    with pytest.raises(ValueError, match="row"):
        _term("bank", bank_rows=0)
