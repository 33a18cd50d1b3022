"""RCCR's ablations: regions of several cells, other images of the student, the released epsilon."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.small import REGIONAL, small_segmenter
from udaseg.methods.contrast import regional_loss as module
from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regional_loss import regional_loss, regional_sum
from udaseg.methods.views import (
    AUGMENTED,
    CUTMIX,
    MIXED,
    TARGET,
    CellView,
    Need,
    StepContext,
    Views,
    _cutmix,
    cells_without,
)
from udaseg.models.projector import Projector
from udaseg.models.segmenter import SegmenterOutput
from udaseg.recipe.contrast import Projector as ProjectorSpec

EPSILON = 1e-8


def _unit(rows, generator, channels=8):
    return F.normalize(torch.randn(rows, channels, generator=generator), dim=1)


def _rule(queries, keys, labels, bank, bank_labels, temperature, epsilon):
    """Return the released loss of each query in float64, without chunks."""
    queries, keys, bank = (part.double() for part in (queries, keys, bank))
    used = bank_labels != EMPTY
    positive = (queries * keys).sum(1) / temperature
    scores = queries @ bank[used].T / temperature
    top = torch.cat([positive[:, None], scores], 1).amax(1)
    counted = bank_labels[used] != labels[:, None]
    own = (positive - top).exp()
    others = ((scores - top[:, None]).exp() * counted).sum(1)
    return -(own / (own + others + epsilon) + epsilon).log()


@pytest.mark.parametrize("chunks", [(4, 16), (2048, 24576)])
@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_the_epsilon_has_the_value_and_gradient_of_its_rule(chunks, temperature, monkeypatch):
    monkeypatch.setattr(module, "_CHUNKS_CPU", chunks)
    generator = torch.Generator().manual_seed(3)
    queries, bank = _unit(30, generator), _unit(50, generator)
    keys = F.normalize(_unit(30, generator) - 0.7 * queries, dim=1)
    labels, bank_labels = torch.arange(30) % 4, torch.arange(50) % 5
    bank_labels[::6] = EMPTY
    keep = torch.arange(30) % 3 > 0
    ours, theirs = queries.clone().requires_grad_(), queries.double().requires_grad_()
    total, count = regional_sum(ours, keys, labels, bank, bank_labels, temperature, keep, EPSILON)
    expected = _rule(theirs, keys, labels, bank, bank_labels, temperature, EPSILON)[keep].sum()
    total.backward()
    expected.backward()
    assert count == keep.sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)
    plain, _ = regional_sum(queries, keys, labels, bank, bank_labels, temperature, keep)
    if temperature < 0.1:
        assert plain.item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_without_a_row_in_the_bank_the_loss_is_zero_and_has_a_graph(epsilon):
    generator = torch.Generator().manual_seed(0)
    queries, keys = _unit(5, generator).requires_grad_(), _unit(5, generator)
    loss = regional_loss(
        queries,
        keys,
        torch.arange(5),
        torch.empty(0, 8),
        torch.empty(0, dtype=torch.int64),
        temperature=0.1,
        epsilon=epsilon,
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(queries.grad, torch.zeros(5, 8))


def test_a_hopeless_anchor_keeps_its_loss_and_loses_its_gradient_in_the_release_only():
    """The key is opposite, a negative is equal: scores of -10 and 10 at a temperature of 0.1."""
    query = torch.tensor([[1.0, 0.0]])
    found = []
    for epsilon in (EPSILON, 0.0):
        leaf = query.clone().requires_grad_()
        one, other = torch.tensor([0]), torch.tensor([1])
        total, _ = regional_sum(leaf, -query, one, query, other, 0.1, None, epsilon)
        total.backward()
        found.append((total.item(), leaf.grad.norm().item()))
    share = math.exp(-20)
    assert found[0][0] == pytest.approx(-math.log(share + EPSILON), rel=1e-5)
    assert found[0][0] < -math.log(EPSILON) == pytest.approx(18.42, abs=0.01)
    assert found[1] == (pytest.approx(20, rel=1e-5), pytest.approx(20, rel=1e-5))
    assert found[0][1] == pytest.approx(20 * share / (share + EPSILON), rel=1e-3)


def _view(generator, labels=None, **fields):
    maps = torch.randn(1, 8, 4, 4, generator=generator)
    embeddings = F.normalize(maps, dim=1)
    guessed = torch.randint(0, 3, (1, 4, 4), generator=generator)
    sure = torch.rand(1, 4, 4, generator=generator)
    labels = guessed if labels is None else labels
    return CellView(embeddings, embeddings, labels, guessed, sure, **fields)


def test_rows_of_the_memory_are_regions_too():
    """Each is the mean vector of its cells; its label is that of its most certain cell."""
    generator = torch.Generator().manual_seed(0)
    square = torch.zeros(1, 4, 4, dtype=torch.bool)
    square[:, :2, 1:3] = True
    labels = torch.tensor([[[255, 1, 2, 5], [255, 0, 1, 5], [255, 255, 4, 3], [255, 255, 4, 4]]])
    cutmix, target = _view(generator, labels, square=square), _view(generator)
    target.confidence[0, :2] = torch.tensor([[0.9, 0.5, 0.2, 0.9], [0.9, 0.6, 0.3, 0.9]])
    term = RegionalContrast(replace(REGIONAL, region_size=2, cells_per_view=99), channels=8)
    term.update(Views(0, 0.0, 4, {CUTMIX: cutmix, TARGET: target}))
    rows, row_labels = term.bank.rows()
    used = row_labels != EMPTY
    # void on the left, so the surest pasted cell decides; on the right the source's label does
    expected = [(cutmix, (0, 0), 0), (cutmix, (0, 2), 5), (cutmix, (2, 2), 4)]
    for y in (0, 2):
        for x in (0, 2):
            cells = target.confidence[0, y : y + 2, x : x + 2].flatten()
            guess = target.predictions[0, y : y + 2, x : x + 2].flatten()[cells.argmax()]
            expected.append((target, (y, x), int(guess)))
    assert used.sum() == len(expected), "the region of void cells is no row"
    for view, (y, x), label in expected:
        mean = F.normalize(view.embeddings[0, :, y : y + 2, x : x + 2].mean((1, 2)), dim=0)
        nearest = (rows - mean).norm(dim=1).argmin()
        assert torch.allclose(rows[nearest], mean, atol=1e-6)
        assert row_labels[nearest] == label


@pytest.mark.parametrize("image", ["classmix", "target"])
@pytest.mark.parametrize("region_size", [1, 2])
def test_anchors_are_the_regions_where_the_student_sees_the_target(image, region_size):
    generator = torch.Generator().manual_seed(1)
    shows = torch.ones(1, 4, 4, dtype=torch.bool)
    if image == "classmix":
        shows[:, 1, 2:] = False
    student = replace(
        _view(generator),
        from_target=shows if image == "classmix" else None,
        label_confidence=torch.rand(1, 4, 4, generator=generator),
    )
    target, view = _view(generator), MIXED if image == "classmix" else AUGMENTED
    target.confidence[:, 2:, :2] = 0.1
    spec = replace(
        REGIONAL,
        image=image,
        region_size=region_size,
        min_confidence=0.3,
        ramp=False,
        weight=1.0,
        negative_sampling=False,
    )
    term = RegionalContrast(spec, channels=8)
    assert [need.view for need in term.needs] == [view, TARGET]
    views = Views(0, 0.0, 4, {view: student, TARGET: target})
    loss = term(views)
    term.update(views)
    bank, bank_labels = term.bank.rows()
    losses, step = [], region_size
    for y in range(0, 4, step):
        for x in range(0, 4, step):
            cells = slice(y, y + step), slice(x, x + step)
            if not shows[0][cells].all() or target.confidence[0][cells].mean() <= 0.3:
                continue
            query, key = (
                F.normalize(seen.embeddings[0][:, cells[0], cells[1]].mean((1, 2)), dim=0)[None]
                for seen in (student, target)
            )
            losses.append(_rule(query, key, torch.tensor([-5]), bank, bank_labels, 0.1, 0.0))
    assert 1 < len(losses) < 16 // step**2
    assert loss.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_a_cell_shows_the_target_if_no_pixel_of_it_was_pasted():
    mask = torch.zeros(1, 16, 24, dtype=torch.bool)
    mask[0, 3, 9] = mask[0, 15, 23] = True
    assert cells_without(mask, (2, 3)).tolist() == [[[True, False, True], [True, True, False]]]


def test_a_square_covers_no_cell_of_the_row_and_column_that_round_up():
    images, labels = torch.rand(2, 3, 32, 48), torch.zeros(2, 32, 48, dtype=torch.uint8)
    features = torch.zeros(2, 8, 5, 7)
    context = StepContext(
        batch=type("Batch", (), {"seed": 3, "source_labels": labels})(),
        student=small_segmenter(),
        teacher=nn.Identity(),
        augment=lambda images, _: images,
        source=torch.zeros_like(images),
        target=images,
        target_output=(output := SegmenterOutput(torch.zeros(2, 5, 5, 7), features, None)),
        label_output=output,
        target_labels=labels,
        target_confidence=labels.float(),
    )
    made = _cutmix(context, Need(CUTMIX, options={"square_share": (1.0, 1.0)}))
    square = made.labels.square
    assert square.shape == made.labels.labels.shape == (2, 5, 7)
    assert square.flatten(1).sum(1).tolist() == [16, 16]
    assert not square[:, 4].any()
    assert not square[:, :, 6].any()
    pixels = square[:, :4, :6].repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(made.images, images * pixels[:, None])


@pytest.mark.parametrize(
    ("kind", "hidden", "weights"),
    [
        ("mlp", None, {"layers.0.weight": (6, 6), "layers.2.weight": (4, 6)}),
        ("mlp", 3, {"layers.0.weight": (3, 6), "layers.2.weight": (4, 3)}),
        ("linear", None, {"layers.weight": (4, 6)}),
        ("none", None, {}),
    ],
)
def test_the_head_has_the_layers_of_its_kind(kind, hidden, weights):
    spec = ProjectorSpec(channels=4, trainable=True, kind=kind, hidden=hidden)
    head, features = Projector.from_spec(spec, 6), torch.randn(2, 6, 3, 3)
    shapes = {name: tuple(value.shape[:2]) for name, value in head.named_parameters()}
    assert {name: shape for name, shape in shapes.items() if "weight" in name} == weights
    expected = features
    layers = dict(head.named_parameters())
    prefixes = [name.removesuffix(".weight") for name in weights]
    for number, prefix in enumerate(prefixes):
        expected = expected.relu() if number else expected
        expected = F.conv2d(expected, layers[f"{prefix}.weight"], layers[f"{prefix}.bias"])
    assert torch.allclose(head(features), F.normalize(expected, dim=1), atol=1e-6)
    assert spec.embedding_channels(6) == expected.shape[1]
