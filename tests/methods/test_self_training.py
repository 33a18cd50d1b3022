"""Properties of self-training for any data: where gradients flow, and what a step changes."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.support.small import PROTOTYPES, REGIONAL, small_segmenter
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.errors import UdasegError
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.objectives.objective import LossReport
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import AUGMENTED, CUTMIX, MIXED, SOURCE, TARGET, Need, Views
from udaseg.recipe.methods import Mixing, StrongAugmentation
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec
from udaseg.recipe.methods import Teacher as TeacherSpec
from udaseg.training.optimizer import make_optimizer, parameter_group

CLASSES = 5


def _regional(**changes):
    settings = {"weight": 0.5, "ramp": False, "min_confidence": 0.0, "cells_per_view": 32}
    return RegionalContrast(replace(REGIONAL, **{**settings, **changes}), channels=4)


def _objective(regional=None, regularizers=None, **mixing):
    student = small_segmenter(classes=CLASSES, projector=regional is not None)
    if regularizers is None:
        regularizers = {} if regional is None else {"regional": regional}
    settings = {"confidence": 0.2, "share_over": "batch", "ignore_is_class": False}
    spec = SelfTrainingSpec(
        kind="self_training",
        teacher=TeacherSpec(momentum=0.99, batch_statistics=False),
        mixing=Mixing(**{**settings, **mixing}),
        augmentation=StrongAugmentation(0.25, 0.8, 0.5, (0.15, 1.15)),
        mix_weight=1.0,
    )
    teacher = Teacher(student, momentum=0.99, batch_statistics=False)
    objective = SelfTraining(spec, student, teacher, num_classes=CLASSES, regularizers=regularizers)
    return objective.train()


def _batch(step=0, seed=0, size=(32, 48)):
    generator = torch.Generator().manual_seed(100 * seed + step)

    def images():
        return torch.randint(0, 256, (2, 3, *size), generator=generator).to(torch.uint8)

    labels = torch.randint(0, CLASSES, (2, *size), generator=generator).to(torch.uint8)
    labels[:, :3] = IGNORE
    return Batch(step, step / 10, 7 * seed + step, images(), labels, images())


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _step(objective, trainer, batch):
    report = objective(batch)
    trainer.zero_grad()
    report.total.backward()
    trainer.step()
    objective.after_step(batch.step, report)
    return report


def _trainer(objective):
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    return make_optimizer(
        "sgd", [parameter_group("all", 0.05, named)], momentum=0.9, weight_decay=0.0
    )


@pytest.mark.parametrize("method", ["source_only", "dacs", "rccr"])
def test_parts_add_up_to_the_total(method):
    objective = {
        "source_only": lambda: SourceOnly(small_segmenter(classes=CLASSES, projector=False)),
        "dacs": _objective,
        "rccr": lambda: _objective(_regional()),
    }[method]()
    report = objective(_batch())
    assert sum(part.item() for part in report.parts.values()) == pytest.approx(report.total.item())
    assert list(report.parts) == ["source", "mixed", "regional"][: len(report.parts)]


def test_gradient_reaches_all_of_the_student_and_nothing_of_the_teacher():
    objective = _objective(_regional())
    objective(_batch()).total.backward()
    without = [
        name
        for name, part in objective.student.named_parameters()
        if part.grad is None or part.grad.abs().sum() == 0
    ]
    # a batch norm after a linear layer makes the gradient of its bias zero
    assert not [name for name in without if not name.endswith("bias")]
    assert all(part.grad is None for part in objective.teacher.parameters())


@pytest.mark.parametrize("part", ["source", "mixed", "regional"])
def test_each_part_alone_moves_the_backbone(part):
    objective = _objective(_regional())
    report = objective(_batch())
    report.parts[part].backward()
    moved = sum(
        p.grad.abs().sum() for p in objective.student.backbone.parameters() if p.grad is not None
    )
    assert moved > 0


def test_a_frozen_projector_stays_and_the_backbone_still_learns():
    objective = _objective(_regional())
    objective.student.projector.requires_grad_(False)
    objective(_batch()).parts["regional"].backward()
    assert all(part.grad is None for part in objective.student.projector.parameters())
    assert any(part.grad is not None for part in objective.student.backbone.parameters())


def test_forward_twice_is_forward_once_but_for_batch_norm():
    objective = _objective(_regional())
    objective.after_step(0, objective(_batch()))
    before = _state(objective)
    first, second = objective(_batch(1)), objective(_batch(1))
    assert first.total == second.total
    changed = [
        name
        for name, value in objective.state_dict().items()
        if not torch.equal(before[name], value)
    ]
    assert all(
        (name.startswith("student.") and "running" in name) or "num_batches" in name
        for name in changed
    ), changed


def test_poisoned_labels_of_the_target_cannot_enter_because_a_batch_has_none():
    assert {name for name in vars(_batch()) if "target" in name} == {"target_images"}


def test_without_confident_pixels_target_pixels_weigh_nothing():
    """With weight 0 on target pixels, replacing the labels under the paste changes nothing."""
    strict = _objective(confidence=1.1)
    report = strict(_batch())
    assert report.figures["confident"].item() == 0
    lenient = _objective(confidence=0.0)
    assert lenient(_batch()).figures["confident"].item() == 1
    assert lenient(_batch()).parts["mixed"] > report.parts["mixed"]


def test_share_over_the_batch_or_each_image():
    sure = torch.tensor([[[0.9, 0.9]], [[0.9, 0.1]]])
    share = _objective(confidence=0.5).weights.share_of_images(sure)
    assert share.tolist() == [[[1.0]], [[0.5]]]
    for over, expected in (("image", [[[1.0]], [[0.5]]]), ("batch", [[[0.75]]])):
        objective = _objective(confidence=0.5, share_over=over)
        context = replace(objective._teach(_batch()), target_confidence=sure)
        views = Views(0, 0.0, 0, {})
        assert objective._sum_over_ranks(context, views, RankSums())[0].tolist() == expected


@pytest.mark.parametrize("square_per", ["image", "batch"])
def test_views_hold_the_square_with_the_teachers_labels_inside(square_per):
    objective = _objective(_regional(square_per=square_per))
    views = objective(_batch()).views
    assert views[CUTMIX].square.shape == (2, 4, 6)
    assert views[CUTMIX].square.any()
    inside = views[CUTMIX].labels[views[CUTMIX].square]
    assert torch.equal(inside, views[TARGET].predictions[views[CUTMIX].square])
    outside = views[CUTMIX].labels[~views[CUTMIX].square]
    cells = _batch().source_labels[:, ::8, ::8].long()
    assert torch.equal(outside, cells[~views[CUTMIX].square])
    if square_per == "batch":
        assert torch.equal(views[CUTMIX].square[0], views[CUTMIX].square[1])


def test_passes_that_nobody_asked_for_are_not_made(monkeypatch):
    calls = []
    for regional in (None, _regional()):
        objective = _objective(regional)
        real = objective.student.forward

        def counted(images, *, embed=False, real=real):
            calls.append(embed)
            return real(images, embed=embed)

        monkeypatch.setattr(objective.student, "forward", counted)
        objective(_batch())
    assert calls == [False, False, False, False, True]


def _striped():
    """Return a batch with one class in each column of cells, so that half of them are pasted."""
    columns = (torch.arange(48) // 8 % CLASSES).to(torch.uint8)
    return replace(_batch(), source_labels=columns.expand(2, 32, 48).clone())


@pytest.mark.parametrize(("image", "passes"), [("cutmix", 3), ("classmix", 2), ("target", 3)])
def test_each_image_of_the_contrast_teaches_the_student_in_a_pass_of_its_own_or_in_the_mixed(
    image, passes, monkeypatch
):
    objective = _objective(_regional(image=image))
    calls = []
    plain = objective.student.forward
    monkeypatch.setattr(
        objective.student,
        "forward",
        lambda images, **kw: calls.append(images) or plain(images, **kw),
    )
    report = objective(_striped())
    report.parts["regional"].backward()
    assert len(calls) == passes
    assert report.parts["regional"].item() > 0
    assert objective.student.projector.layers[0].weight.grad.abs().sum() > 0
    objective.after_step(0, report)
    assert len(objective.regularizers["regional"].bank) > 0


def test_a_mixed_image_shows_the_target_in_cells_without_a_pasted_pixel():
    objective = _objective(_regional(image="classmix"))
    report = objective(_striped())
    mixed, of_source = report.views[MIXED], _striped().source_labels[:, ::8, ::8].long()
    pasted = ~mixed.from_target
    assert torch.equal(mixed.labels[pasted], of_source[pasted])
    assert torch.equal(mixed.label_confidence == 1, pasted)
    assert 0 < mixed.from_target.sum() < mixed.from_target.numel()


def test_the_target_image_has_the_labels_and_confidence_of_the_teacher():
    objective = _objective(_regional(image="target"))
    views = objective(_batch()).views
    assert torch.equal(views[AUGMENTED].labels, views[TARGET].predictions)
    assert torch.equal(views[AUGMENTED].label_confidence, views[TARGET].confidence)


def test_a_second_term_makes_the_first_ones_passes_but_not_its_projections(monkeypatch):
    spec = replace(PROTOTYPES, weight=0.1, min_confidence=0.5)
    term = PrototypeContrast(spec, num_classes=CLASSES, channels=8)
    objective, calls = _objective(_regional()), []
    objective.regularizers["prototypes"] = term
    real = objective.student.forward

    def counted(images, *, embed=False):
        calls.append(embed)
        return real(images, embed=embed)

    monkeypatch.setattr(objective.student, "forward", counted)
    views = objective(_batch()).views
    assert calls == [False, False, True], "a projection that nobody reads"
    assert views[MIXED].label_confidence.shape == views[MIXED].labels.shape
    assert views[MIXED].label_confidence.max() == 1, "source cells are sure"


def test_the_state_dict_is_the_whole_memory():
    """A copy restored from state dicts alone continues exactly like the original."""
    objective = _objective(_regional())
    trainer = _trainer(objective)
    for step in range(3):
        _step(objective, trainer, _batch(step))
    twin = _objective(_regional())
    twin.load_state_dict(objective.state_dict())
    its_trainer = _trainer(twin)
    its_trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for step in range(3, 6):
        one = _step(objective, trainer, _batch(step))
        two = _step(twin, its_trainer, _batch(step))
        assert one.total == two.total
    both = zip(objective.state_dict().items(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for (_, value), other in both)


@pytest.mark.parametrize(
    "lost",
    [
        "student.head.branches.0.weight",
        "student.backbone.low.1.running_mean",
        "teacher.network.head.branches.0.weight",
        "teacher.network.backbone.rest.1.running_var",
        "regularizers.regional.bank.embeddings",
        "regularizers.regional.bank.labels",
        "regularizers.regional.bank.cursor",
        "student.projector.layers.0.weight",
        "momentum",
    ],
)
def test_each_part_of_the_memory_matters(lost):
    """The test above fails if any one item is missing from a checkpoint."""
    objective = _objective(_regional())
    trainer = _trainer(objective)
    for step in range(4):  # the ring buffer is full and its cursor is not at the start
        _step(objective, trainer, _batch(step))
    twin = _objective(_regional())
    state = objective.state_dict()
    if lost != "momentum":
        state = {**state, lost: twin.state_dict()[lost]}
    twin.load_state_dict(state)
    its_trainer = _trainer(twin)
    if lost != "momentum":
        its_trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for step in range(4, 7):
        _step(objective, trainer, _batch(step))
        _step(twin, its_trainer, _batch(step))
    both = zip(objective.state_dict().items(), twin.state_dict().values(), strict=True)
    assert any(not torch.equal(value, other) for (_, value), other in both)


def test_any_regularizer_can_be_added_by_its_contract():
    class Length(Regularizer):
        needs = (Need(SOURCE), Need(MIXED))

        def __init__(self):
            super().__init__()
            self.register_buffer("updates", torch.zeros(()))

        def forward(self, views):
            assert set(views.by_name) == {SOURCE, MIXED}
            return views[SOURCE].features.square().mean() + views[MIXED].features.square().mean()

        def update(self, views):
            self.updates += 1

    objective = _objective(regularizers={"length": Length()})
    report = objective(_batch())
    report.parts["length"].backward()
    objective.after_step(0, report)
    assert objective.regularizers["length"].updates == 1


class _Broken(Regularizer):
    needs = (Need(SOURCE),)

    def __init__(self, *, needs=None, loss=None):
        super().__init__()
        self.needs, self.loss = needs or self.needs, loss

    def forward(self, views):
        return self.loss


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_Broken(needs=(SOURCE,)), "needs 'source', which is no Need of a view"),
        (_Broken(needs=(Need("sourse"),)), "view='sourse'.*makes: target, teacher_source"),
        (_Broken(needs=(Need(SOURCE, embed=True),)), "'broken' needs embeddings.*`projector`"),
        (_Broken(loss=None), "'broken' must return a scalar tensor, got NoneType"),
        (_Broken(loss=torch.zeros(1)), r"'broken' must return a scalar tensor, got \(1,\)"),
    ],
)
def test_a_regularizer_that_breaks_its_contract_is_named(broken, message):
    with pytest.raises(UdasegError, match=message):
        _objective(regularizers={"broken": broken})(_batch())


def test_target_images_are_required():
    with pytest.raises(ValueError, match="target images"):
        _objective()(replace(_batch(), target_images=None))


def test_a_batch_where_every_source_pixel_is_void_is_harmless():
    batch = _batch()
    void = replace(batch, source_labels=torch.full_like(batch.source_labels, IGNORE))
    report = _objective(_regional())(void)
    assert report.parts["source"] == 0
    report.total.backward()
    assert isinstance(report, LossReport)
    assert torch.isfinite(report.total)


class Joint(Regularizer):
    """Compares source and mixed features in one loss."""

    needs = (Need(SOURCE), Need(MIXED))

    def forward(self, views):
        return (views[SOURCE].features * views[MIXED].features).mean()


def _prototypes():
    return PrototypeContrast(PROTOTYPES, num_classes=CLASSES, channels=8)


@pytest.mark.parametrize("terms", ["", "regional", "regional prototypes", "regional joint"])
def test_backward_passes_by_view_give_the_gradient_of_the_sum(terms):
    makers = {"regional": _regional, "prototypes": _prototypes, "joint": Joint}
    gradients = []
    for by_view in (True, False):
        objective = _objective(
            _regional(), regularizers={name: makers[name]() for name in terms.split()}
        ).double()
        if by_view:
            for report in objective.passes(_batch(), RankSums()):
                report.total.backward()
        else:
            objective(_batch()).total.backward()
        gradients.append([part.grad for part in objective.student.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ([], [["source"], ["mixed"]]),
        (["regional"], [["source"], ["mixed"], ["regional"]]),
        (
            ["regional", "prototypes"],
            [["source", "prototypes"], ["mixed", "prototypes"], ["regional"]],
        ),
        (["joint"], [["source", "mixed", "joint"]]),
        (["joint", "regional"], [["source", "mixed", "joint"], ["regional"]]),
    ],
)
def test_only_views_that_one_loss_compares_share_a_backward_pass(terms, names):
    makers = {"regional": _regional, "prototypes": _prototypes, "joint": Joint}
    objective = _objective(_regional(), regularizers={name: makers[name]() for name in terms})
    reports = []
    for report in objective.passes(_batch(), RankSums()):
        made = [] if report.views is None else report.views.by_name.values()
        assert sum(view.features.requires_grad for view in made) <= (2 if "joint" in terms else 1)
        reports.append(report)
    assert [list(report.parts) for report in reports] == names
    assert [report.is_last for report in reports] == [False] * (len(names) - 1) + [True]
    whole = reports[-1].views
    assert whole is reports[0].views
    if whole is not None:
        assert not any(view.features.requires_grad for view in whole.by_name.values())
