"""Two real processes share a batch: losses, gradients and memories equal those of one process.

The ranks have different numbers of ignored cells, so a mean of local means would be wrong.
"""

import functools
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing

from tests.support.ranks import found_by_each, joined
from tests.support.small import PROTOTYPES, REGIONAL, SEMANTIC
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.feature_distance import FrozenDistance
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.pixel_loss import pixel_loss
from udaseg.methods.views import CUTMIX, MIXED, SOURCE, TARGET, TEACHER_SOURCE, CellView, Views
from udaseg.models.projector import to_unit_length
from udaseg.recipe.contrast import FeatureDistance

RANKS, CLASSES, CHANNELS, SIDE, STEPS = 2, 5, 8, 4, 4


def _regional(**changes):
    # odd, and fewer than available: the ranks contribute different numbers of rows
    cells = 2 * RANKS * SIDE * SIDE // changes.get("region_size", 1) ** 2 - 3
    spec = replace(REGIONAL, min_confidence=0.3, bank_steps=2, cells_per_view=cells, **changes)
    return RegionalContrast(spec, channels=CHANNELS)


def _prototypes(**changes):
    spec = replace(PROTOTYPES, **changes)
    return PrototypeContrast(spec, num_classes=CLASSES, channels=CHANNELS)


def _semantic(variant, **changes):
    return SemanticContrast(replace(SEMANTIC, variant=variant, **changes), num_classes=CLASSES)


def _anchors():
    term = AnchorContrast(PROTOTYPES, num_classes=CLASSES, channels=CHANNELS)
    means = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(3))
    term.prototypes.initialise(means, torch.arange(CLASSES) != 2)
    return term


def _distance(kind):
    torch.manual_seed(3)
    frozen = torch.nn.Conv2d(3, CHANNELS, 1).requires_grad_(False)
    spec = FeatureDistance(kind, weight=0.5)
    return FrozenDistance(spec, frozen, channels=CHANNELS, things=(1, 3))


TERMS = {
    "regional": _regional,
    "regional of 2x2 cells": functools.partial(_regional, region_size=2, epsilon=1e-8),
    "regional on mixed images": functools.partial(_regional, image="classmix"),
    "prototypes": _prototypes,
    "prototypes as released": functools.partial(
        _prototypes, momentum=0.1, absent="fade", normalise=False, temperature=100.0
    ),
    "anchors": _anchors,
    "cosine distance": functools.partial(_distance, "cosine"),
    "distance of things": functools.partial(_distance, "thing_class"),
    "semantic means": functools.partial(_semantic, "prototype"),
    "semantic bank": functools.partial(_semantic, "bank"),
    "semantic distributions": functools.partial(_semantic, "distribution"),
    "semantic as released": functools.partial(_semantic, "bank", mean_weight=1.0, unseen="zero"),
}


def _view(step, name):
    """Return a view of the whole batch, with a second half that is mostly void."""
    generator = torch.Generator().manual_seed(1000 * step + len(name))
    shape = (2 * RANKS, SIDE, SIDE)
    embeddings = to_unit_length(torch.randn(shape[0], CHANNELS, *shape[1:], generator=generator))
    labels = torch.randint(0, CLASSES, shape, generator=generator)
    predictions = torch.randint(0, CLASSES, shape, generator=generator)
    predictions = torch.where(torch.rand(shape, generator=generator) < 0.6, labels, predictions)
    labels[RANKS:, 1:] = 255
    labels[0, 0, 0] = 255
    confidence = torch.rand(shape, generator=generator)
    return CellView(embeddings, embeddings, labels, predictions, confidence)


def _part(view, part, grad):
    """Return one rank's images of a view, as leaf tensors if they come from the student."""
    embeddings = view.embeddings[part].clone().requires_grad_(grad)
    return CellView(
        embeddings, embeddings, view.labels[part], view.predictions[part], view.confidence[part]
    )


def _views(step, part):
    square = torch.zeros(2 * RANKS, SIDE, SIDE, dtype=torch.bool)
    square[:RANKS, 1:, :3] = True
    square[RANKS:, :2, :2] = True
    students = {name: _part(_view(step, name), part, True) for name in (SOURCE, MIXED, CUTMIX)}
    teachers = {name: _part(_view(step, name), part, False) for name in (TARGET, TEACHER_SOURCE)}
    students[CUTMIX] = replace(students[CUTMIX], square=square[part])
    students[MIXED] = replace(students[MIXED], from_target=square[part])
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(2 * RANKS, 3, SIDE, SIDE, generator=generator)[part]
    shown = {SOURCE: images, MIXED: images / 2}
    return Views(step, step / STEPS, 7, {**students, **teachers}, images=shown)


def _run(name, part):
    """Return the losses, gradients and memory after a few steps of a term on `part`."""
    term = TERMS[name]()
    losses, gradients = [], []
    for step in range(STEPS):
        views = _views(step, part)
        loss = term(views)
        loss.backward()
        term.update(views)
        losses.append(loss.detach())
        students = [views[view].embeddings for view in (SOURCE, MIXED, CUTMIX)]
        gradients.append([torch.zeros_like(e) if e.grad is None else e.grad for e in students])
    return losses, gradients, {key: value.clone() for key, value in term.state_dict().items()}


def _pixels(part):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2 * RANKS, CLASSES, SIDE, SIDE, generator=generator)[part]
    labels = torch.randint(0, CLASSES, (2 * RANKS, 16, 16), generator=generator)
    labels[RANKS:, 2:] = 255
    weights = torch.rand(2 * RANKS, 16, 16, generator=generator)[part]
    logits = logits.requires_grad_()
    loss = pixel_loss(logits, labels[part]) + pixel_loss(
        logits, labels[part], weights, mean_over="all"
    )
    loss.backward()
    return loss.detach(), logits.grad


def _rank(number, folder):
    with joined(number, folder, RANKS):
        part = slice(RANKS * number, RANKS * (number + 1))
        plain, reductions = torch.distributed.all_reduce, []
        torch.distributed.all_reduce = lambda value: (reductions.append(value), plain(value))
        results, counts = {}, {}
        for name in TERMS:
            results[name] = _run(name, part)
            counts[name] = len(reductions)
            reductions.clear()
        torch.distributed.all_reduce = plain
        results["reductions"] = counts
        results["pixels"] = _pixels(part)
        torch.save(results, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    return found_by_each(_rank, folder, RANKS)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_and_its_memory_are_those_of_one_process(ranks, name):
    losses, gradients, memory = _run(name, slice(None))
    for step in range(STEPS):
        mean = sum(results[name][0][step] for results in ranks) / RANKS
        assert mean.item() == pytest.approx(losses[step].item(), abs=1e-5)
        for view in range(3):
            # DistributedDataParallel averages the gradients over ranks
            whole = torch.cat([results[name][1][step][view] for results in ranks]) / RANKS
            assert torch.allclose(whole, gradients[step][view], atol=1e-6)
    assert any(gradient.any() for gradient in gradients[-1])
    first, second = (results[name][2] for results in ranks)
    assert set(first) == set(memory)
    for key in memory:
        assert torch.equal(first[key], second[key]), f"the ranks remember other {key}"
    for key, value in memory.items():
        assert torch.allclose(first[key].double(), value.double(), atol=1e-5), key


@pytest.mark.parametrize("name", TERMS)
def test_a_term_reduces_its_memory_once_a_step_and_counts_that_nobody_summed_before(ranks, name):
    counts = len(TERMS[name]().student_views())
    if name.startswith("prototypes"):
        counts -= 1  # the source's are summed with the prototypes
    if name == "semantic as released":
        counts *= 3  # the cells that have a class, and their mean embedding
    if name == "cosine distance":
        counts = 0  # all cells count
    has_memory = name not in ("anchors", "cosine distance", "distance of things")
    for results in ranks:
        assert results["reductions"][name] == STEPS * (has_memory + counts)


def test_the_mean_of_pixels_is_over_all_ranks(ranks):
    loss, gradient = _pixels(slice(None))
    shares = [results["pixels"] for results in ranks]
    assert (sum(part for part, _ in shares) / RANKS).item() == pytest.approx(loss.item(), abs=1e-5)
    whole = torch.cat([part for _, part in shares]) / RANKS
    assert torch.allclose(whole, gradient, atol=1e-6)


def test_a_mean_of_local_means_would_be_told_apart():
    """A mean of local means is wrong for this case; otherwise the tests above prove nothing."""
    term = _prototypes()
    whole = term(_views(0, slice(None)))
    local = sum(term(_views(0, slice(2 * n, 2 * n + 2))) for n in range(RANKS)) / RANKS
    assert abs(whole.item() - local.item()) > 1e-2
