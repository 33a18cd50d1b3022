"""Two real processes train like one with the whole batch: losses, weights, memories, signals.

The loop, the objectives and their randomness are the real ones; batch norm trains. The second
rank's images are mostly void, so a mean of the ranks' means would be wrong.
"""

import signal
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch._dynamo.utils import counters

from tests.methods.test_self_training import _objective, _regional
from tests.support.injections import easy_batch, everything, tiny_fit, trained
from tests.support.ranks import found_by_each, joined
from tests.support.small import PROTOTYPES, SEMANTIC, shipped, small_segmenter
from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_gather_object, all_ranks, on_rank_zero, without_peers, world_size
from udaseg.errors import DataError, RankFailed
from udaseg.methods.build import apply_machine_options
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.feature_distance import FrozenDistance
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.alignment import PrototypeAlignment
from udaseg.methods.objectives.entropy import EntropyMinimization
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.teacher import Teacher
from udaseg.models import compiling
from udaseg.models.frozen import FrozenBackbone, frozen_segmenter
from udaseg.models.segmenter import build_segmenter
from udaseg.recipe.contrast import FeatureDistance
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import ColorJitter, Masking, Prior
from udaseg.recipe.methods import EntropyMinimization as EntropySpec
from udaseg.recipe.methods import PrototypeAlignment as AlignmentSpec
from udaseg.recipe.schema import Machine
from udaseg.signals import StopSignal
from udaseg.training.setup import distribute

RANKS, EACH, STEPS = 2, 2, 5
CALLS_STOP = 3


def _global_batch(step, seed):
    """Return 4 + 4 images; the last two have few labels, and different ones."""
    first, second = (easy_batch(step, seed + half) for half in range(2))
    second.source_labels[:, 2:] = IGNORE
    joined = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("source_images", "source_labels", "target_images")
    }
    return replace(first, **joined, pseudo_labels=joined["source_labels"].flip(2))


def _prototypes(second):
    return PrototypeContrast(PROTOTYPES, num_classes=5, channels=8, second_view=second)


def _mean_teaching(**changes):
    """Return RCCR with a teacher that uses batch statistics."""
    objective = _objective(_regional(cells_per_view=15, weight=0.5), **changes)
    objective.teacher = Teacher(objective.student, momentum=0.99, batch_statistics=True)
    objective.source_jitter = ColorJitter(0.2, 0.1)
    return objective.train()


def _semantic():
    spec = replace(SEMANTIC, variant="distribution", temperature=1.0, bank_rows=0, channels=4)
    term = SemanticContrast(spec, num_classes=5)
    return _mean_teaching(share_over="image", regularizers={"semantic": term})


def _warmed_up():
    """Return RCCR after a warm-up, with every option of self-training."""
    student = small_segmenter()
    teacher = Teacher(student, momentum=0.99, batch_statistics=True)
    spec = _objective(share_over="class").spec
    spec = replace(
        spec,
        teacher=replace(spec.teacher, mirror=True, prior=Prior(0.5, "source")),
        warm_up=0.4,
        mix_ramp=0.5,
        masking=Masking("block", size=8, ramp=0.5),
    )
    terms = {"regional": _regional(cells_per_view=15, ramp=True)}
    return SelfTraining(
        spec, student, teacher, num_classes=5, regularizers=terms, steps=STEPS
    ).train()


def _beside_a_frozen_one():
    """Return self-training with fixed anchors and both distances to a frozen backbone."""
    anchors = AnchorContrast(PROTOTYPES, num_classes=5, channels=8)
    means = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    anchors.prototypes.initialise(means, torch.ones(5, dtype=torch.bool))
    terms = {"anchors": anchors}
    for kind in ("cosine", "thing_class"):
        frozen = FrozenBackbone(frozen_segmenter(small_segmenter(seed=4).backbone))
        spec = FeatureDistance(kind, weight=0.5)
        terms[kind] = FrozenDistance(spec, frozen, channels=8, things=(0, 2))
    return _mean_teaching(regularizers=terms)


def _adversarial():
    torch.manual_seed(1)
    student = small_segmenter(projector=False)
    discriminator = nn.Sequential(nn.Conv2d(5, 4, 3, 2), nn.LeakyReLU(), nn.Conv2d(4, 1, 3))
    spec = AdversarialSpec("adversarial", "softmax", 0.1, 1.0, discriminator_lr=1e-4)
    return Adversarial(student, discriminator, spec).train()


def _partly_frozen():
    """Return RCCR of which the first layer and its norm do not learn."""
    frozen = ("low.0.weight", "low.0.bias", "low.1.weight", "low.1.bias")
    objective = _objective(_regional(cells_per_view=15, weight=0.5))
    objective.student = small_segmenter(frozen=frozen)
    objective.teacher = Teacher(objective.student, momentum=0.99, batch_statistics=True)
    return objective.train()


def _on(backbone):
    """Return RCCR on a network of timm, with layer norms, and a head with batch norms."""
    words = [f"model.backbone=timm:{backbone}", "model.output_stride=32", "model.weights=random"]
    recipe = shipped("toyland/rccr", [*words, "model.head=pyramid", "model.head_channels=8"])
    objective = _objective(_regional(cells_per_view=15, weight=0.5))
    torch.manual_seed(1)
    spec = recipe.method.regional.projector
    objective.student = build_segmenter(recipe.model, 5, projector=replace(spec, channels=4))
    objective.teacher = Teacher(objective.student, momentum=0.99, batch_statistics=False)
    return objective.train()


LARGER = {"rccr, plain ViT": "test_vit", "rccr, ConvNeXt": "test_convnext"}
"""Networks whose cells are larger than a whole image of the others; theirs is four times as large.
"""

OBJECTIVES = {
    "rccr": _mean_teaching,
    "rccr, partly frozen": _partly_frozen,
    "rccr, a square a batch": lambda: _mean_teaching(
        regularizers={"regional": _regional(cells_per_view=7, square_per="batch")}
    ),
    "rccr and spcl": lambda: _mean_teaching(
        regularizers={"regional": _regional(), "prototypes": _prototypes("mixed")}
    ),
    "spcl, contrast": lambda: PrototypeAlignment(
        small_segmenter(projector=False),
        _prototypes("pseudo_labelled"),
        AlignmentSpec("prototype_alignment", PROTOTYPES, temperature=1.8),
    ).train(),
    "rccr after a warm-up": _warmed_up,
    "sepico": _semantic,
    "frozen backbone": _beside_a_frozen_one,
    "advent": _adversarial,
    "fda": lambda: EntropyMinimization(
        small_segmenter(projector=False), EntropySpec("entropy", weight=0.1, power=2.0, band=0.2)
    ).train(),
}

OBJECTIVES |= {name: partial(_on, backbone) for name, backbone in LARGER.items()}

MADE_AGAIN = ("rccr", "spcl, contrast")


def _run(name, part, *, recompute=False, compiled=False):
    """Return the loss of each step, and all tensors after the last step."""

    def batches(step, seed):
        whole, factor = _global_batch(step, seed), 4 if name in LARGER else 1
        names = ("source_images", "source_labels", "target_images", "pseudo_labels")
        parts = {word: getattr(whole, word)[part] for word in names}
        for word, each in parts.items():
            parts[word] = each.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return replace(whole, **parts)

    objective = OBJECTIVES[name]()
    objective.student.recompute = recompute
    if compiled:
        apply_machine_options(objective, Machine(compile=True))
    run = tiny_fit(objective=objective, steps=STEPS, kind="sgd", lr=0.02, make=batches)
    object.__setattr__(run, "join_ranks", distribute(objective))
    losses = []

    def on_step(_, report):
        parts = [report.total, *report.parts.values(), *report.figures.values()]
        losses.extend(part.detach() for part in parts)

    trained(run, on_step=on_step)
    return torch.stack(losses), everything(run)


class _Stop(StopSignal):
    """Receive a signal on one rank, before the third step."""

    def __init__(self, rank):
        super().__init__()
        self.calls, self.rank = 0, rank

    def received(self):
        self.calls += 1
        if self.rank == 1 and self.calls == CALLS_STOP:
            self.number = signal.SIGTERM
        return super().received()


def _stopped(rank):
    run = tiny_fit(objective=_adversarial(), steps=STEPS, make=_global_batch)
    stop = _Stop(rank)
    return trained(run, stop=stop), stop.number


def _words(rank):
    """Return the results of the small collective operations on one rank."""
    with without_peers():
        sizes = world_size(), all_gather_object(rank)

    def fails():
        raise DataError("no such file")

    try:
        on_rank_zero(fails)
        raised = None
    except (DataError, RankFailed) as error:
        raised = type(error).__name__, error.exit_code, str(error)
    return {
        "alone": sizes,
        "everywhere": (all_ranks(True), all_ranks(rank == 0)),
        "first": on_rank_zero(lambda: f"from {rank}"),
        "gathered": all_gather_object([rank]),
        "told": raised,
    }


def _rank(number, folder):
    with joined(number, folder, RANKS):
        part = slice(EACH * number, EACH * (number + 1))
        runs = {name: _run(name, part) for name in OBJECTIVES}
        again = {name: _run(name, part, recompute=True) for name in MADE_AGAIN}
        with mock.patch.object(compiling, "BACKEND", "eager"):
            compiled = _run("rccr", part, compiled=True), sum(counters["graph_break"].values())
        checks = {"stopped": _stopped(number), "words": _words(number), "again": again}
        checks["compiled"] = compiled
        torch.save((runs, checks), folder / f"{number}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    return found_by_each(_rank, folder, RANKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_train_as_one_with_the_whole_batch(ranks, name):
    losses, tensors = _run(name, slice(None))
    (first, state), (second, other) = (runs[name] for runs, _ in ranks)
    assert torch.allclose((first + second) / RANKS, losses, atol=1e-5, rtol=0)
    for key, value in tensors.items():
        assert torch.equal(state[key], other[key]), f"the ranks have other {key}"
        assert torch.allclose(state[key].double(), value.double(), atol=1e-5, rtol=0), key
    assert losses.isfinite().all()
    assert not torch.equal(first, second), "the ranks hold different images"


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE_AGAIN)
def test_activations_made_again_change_no_bit_where_norms_see_all_ranks(ranks, name):
    for runs, checks in ranks:
        losses, tensors = runs[name]
        again, other = checks["again"][name]
        assert torch.equal(again, losses)
        assert [key for key in tensors if not torch.equal(tensors[key], other[key])] == []


@pytest.mark.slow
def test_compiled_norms_see_all_ranks_too_and_stay_in_the_graph(ranks):
    for runs, checks in ranks:
        (losses, tensors), breaks = checks["compiled"]
        assert breaks == 0
        assert torch.allclose(losses, runs["rccr"][0], atol=1e-5, rtol=0)
        for key, value in runs["rccr"][1].items():
            assert torch.allclose(tensors[key].double(), value.double(), atol=1e-5, rtol=0), key


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(ranks):
    assert [checks["stopped"] for _, checks in ranks] == [(CALLS_STOP, signal.SIGTERM)] * RANKS


@pytest.mark.slow
def test_what_ranks_say_to_each_other(ranks):
    for number, (_, checks) in enumerate(ranks):
        results = checks["words"]
        assert results["alone"] == (1, [number])
        assert results["everywhere"] == (True, False)
        assert results["first"] == "from 0"
        assert results["gathered"] == [[0], [1]]
        assert results["told"][1:] == (3, "no such file")
    assert [checks["words"]["told"][0] for _, checks in ranks] == ["DataError", "RankFailed"]


def test_a_signal_that_comes_while_the_ranks_talk_is_kept_for_the_next_time(monkeypatch):
    stop = StopSignal()

    def reduce(number):
        stop.number = signal.SIGTERM
        return number

    monkeypatch.setattr("udaseg.signals.world_size", lambda: 2)
    monkeypatch.setattr("udaseg.signals.all_reduce_max", reduce)
    assert not stop.stop_requested(), (
        "the others have not heard of it, so this rank must not stop alone"
    )
    assert stop.stop_requested()
