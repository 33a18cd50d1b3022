"""What each term computes in a step: once, without a wait for a GPU, and in few operators."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from tests.support.fake_gpu import fake_gpu
from tests.support.small import PROTOTYPES, REGIONAL, SEMANTIC
from udaseg.methods.contrast.prototypes import ClassPrototypes, PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.semantic import ClassStatistics, SemanticContrast
from udaseg.methods.contrast.value_of_step import ValueOfStep
from udaseg.methods.views import CUTMIX, MIXED, SOURCE, TARGET, TEACHER_SOURCE, CellView, Views
from udaseg.models.projector import to_unit_length

CLASSES = 5


def _term(name, channels=8, cells=20):
    if name == "regional":
        return RegionalContrast(replace(REGIONAL, cells_per_view=cells), channels=channels)
    if name == "prototypes":
        return PrototypeContrast(PROTOTYPES, num_classes=CLASSES, channels=channels)
    spec = replace(SEMANTIC, variant=name, channels=channels)
    return SemanticContrast(spec, num_classes=CLASSES)


TERMS = ["regional", "prototypes", "prototype", "bank", "distribution"]


def _views(seed, channels=8, side=4, square=None):
    generator = torch.Generator().manual_seed(seed)

    def view(grad):
        maps = torch.randn(2, channels, side, side, generator=generator)
        maps = to_unit_length(maps.contiguous(memory_format=torch.channels_last))
        labels = torch.randint(0, CLASSES, (2, side, side), generator=generator)
        sure = torch.rand(2, side, side, generator=generator)
        return CellView(maps, maps.requires_grad_(grad), labels, labels, sure)

    if square is None:
        square = torch.zeros(2, side, side, dtype=torch.bool)
        square[:, 1:, : side - 1] = True
    by_name = {name: view(True) for name in (SOURCE, MIXED, CUTMIX)}
    by_name |= {name: view(False) for name in (TARGET, TEACHER_SOURCE)}
    by_name[CUTMIX] = replace(by_name[CUTMIX], square=square)
    return Views(seed, 0.5, seed, by_name)


def _counted(plain, calls):
    def call(*args):
        calls.append(plain)
        return plain(*args)

    return call


def _count_computations(monkeypatch):
    """Return a list that gets an entry each time a term computes what it shares with `update`."""
    calls = []
    for owner, name in (
        (RegionalContrast, "_new_rows"),
        (ClassPrototypes, "preview_with_count"),
        (ClassStatistics, "preview_update"),
    ):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, _counted(plain, calls))
    return calls


def _same(one, other):
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("name", TERMS)
def test_the_loss_and_the_update_of_a_step_compute_once(monkeypatch, name):
    term, calls = _term(name), _count_computations(monkeypatch)
    for seed in range(3):
        views = _views(seed)
        term(views)
        term.update(views)
    assert len(calls) == 3


@pytest.mark.parametrize("name", TERMS)
def test_what_was_kept_is_what_an_update_alone_computes(name):
    term, alone = _term(name), _term(name)
    for seed in range(4):
        views = _views(seed)
        term(views)
        term.update(views)
        alone.update(views)
        assert _same(term, alone)


@pytest.mark.parametrize("name", TERMS)
def test_a_dropped_step_and_merged_parts_leave_nothing_behind(name):
    term, alone = _term(name), _term(name)
    term(_views(0))  # dropped
    term(_views(1))
    term.update(_views(2))  # the merged views of two parts, for example
    alone.update(_views(2))
    assert _same(term, alone)
    views = _views(3)
    loss = term(views)
    assert loss == alone(views)
    term.update(views)
    alone.update(views)
    assert _same(term, alone)
    assert term(views) == alone(views), "a value from before the update was used"


def test_a_value_is_kept_for_one_step_and_does_not_keep_its_views_alive():
    value, views, calls = ValueOfStep(), _views(0), []

    def compute(given):
        calls.append(given.step)
        return given.step

    assert [value.get(views, compute), value.get(views, compute)] == [0, 0]
    assert value.take(views, compute) == 0
    assert calls == [0]
    value.get(views, compute)
    assert calls == [0, 0], "the value was not let go"
    assert value.get(_views(0), compute) == 0, "equal views are not the same views"
    assert value.get(views, compute) == 0
    assert calls == [0, 0, 0, 0]
    gone = weakref.ref(views)
    del views
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("regional", 120),
        ("prototypes", 120),
        ("prototype", 125),
        ("bank", 185),
        ("distribution", 150),
    ],
)
def test_on_a_gpu_a_step_needs_few_operators_and_no_wait(name, most):
    """At the published sizes, with as many anchors as possible."""
    square = torch.ones(2, 64, 64, dtype=torch.bool)
    views = _views(0, channels=128, side=64, square=square)
    term = _term(name, channels=128, cells=4000)
    with fake_gpu() as operators:
        operators.move(term)
        for view, seen in views.by_name.items():
            tensors = {
                key: operators.on_gpu(value)
                for key, value in vars(seen).items()
                if value is not None and key != "square"
            }
            views.by_name[view] = replace(seen, **tensors)
        operators.counts.clear()
        loss = term(views)
        term.update(views)
    assert loss.device.type == "cuda"
    assert operators.counts.total() <= most, operators.counts


def test_the_counter_of_operators_sees_waits():
    with fake_gpu() as operators:
        mask = operators.on_gpu(torch.ones(3, dtype=torch.bool))
        values = operators.on_gpu(torch.ones(3))
        host = torch.ones(3)
        assert (values + 1).device.type == "cuda"
        assert operators.counts == {"add": 1}
        for wait in (
            lambda: values.sum().item(),
            lambda: values[mask],
            lambda: mask.nonzero(),
            lambda: values.cpu(),
            lambda: host.to("cuda"),
            lambda: values.copy_(host),
        ):
            with pytest.raises(AssertionError, match="wait"):
                wait()
