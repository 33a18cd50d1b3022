"""RCCR's loss, memory, head, teacher and mixing against what its released code gave."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from tests.known_answers.reader import answer
from tests.support.small import REGIONAL, small_segmenter
from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regional_loss import regional_sum
from udaseg.methods.mixing import class_mask, paste
from udaseg.methods.pixel_loss import pixel_loss, pseudo_labels
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import CUTMIX, TARGET, CellView, Views
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.projector import Projector

EPSILON = 1e-8
CONTRASTS = (
    "rccr/contrast_loss",
    "rccr/contrast_loss_three_chunks",
    "rccr/contrast_loss_void_rows",
    "rccr/contrast_loss_no_anchor",
    "rccr/contrast_loss_no_negative",
    "rccr/contrast_loss_opposed",
)
TOLD_APART = CONTRASTS[-2:]
"""Where the epsilon is more than rounding."""


def _contrast(case, epsilon):
    """Return loss, gradient by the unit queries, and the number of counted anchors."""
    queries = case.tensor("queries").requires_grad_()
    keep = case.tensor("confidence") > case.constants["threshold"]
    total, count = regional_sum(
        queries,
        case.tensor("keys"),
        case.tensor("label"),
        case.tensor("bank"),
        case.tensor("bank_label"),
        case.constants["temperature"],
        keep,
        epsilon,
    )
    loss = total / count.clamp_min(1)
    loss.backward()
    return loss, queries.grad, count


@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("epsilon", [EPSILON, 0.0])
def test_the_contrast_has_the_value_and_gradient_of_the_release_or_of_no_epsilon(name, epsilon):
    case = answer(name)
    loss, gradient, count = _contrast(case, epsilon)
    case.expect("counted", count)
    case.expect("loss", loss, variation=epsilon == 0)
    case.expect("gradient", gradient, variation=epsilon == 0)
    if name in TOLD_APART:
        assert case.differs("loss", loss) == (epsilon == 0)
        assert case.differs("gradient", gradient) == (epsilon == 0)


def _step(case, step):
    """Return the views of a step: maps of the case, its square, and labels of both views."""
    top, left, side = (number // 8 for number in case.constants["squares"][step])
    square = torch.zeros(2, 45, 45, dtype=torch.bool)
    square[:, top : top + side, left : left + side] = True
    confidence, guessed = case.tensor(f"logits_{step}").softmax(1).max(1)
    student = case.tensor(f"student_{step}").requires_grad_()
    teacher = case.tensor(f"teacher_{step}")
    labels = torch.where(square, guessed, case.tensor(f"label_{step}")[:, ::8, ::8].long())
    cutmix = CellView(student, student, labels, labels, confidence, square=square)
    target = CellView(teacher, teacher, guessed, guessed, confidence)
    return Views(step, step / 10, 0, {CUTMIX: cutmix, TARGET: target})


@pytest.mark.parametrize("epsilon", [EPSILON, 0.0])
def test_five_steps_have_the_losses_gradients_and_memory_of_the_release(epsilon):
    case = answer("rccr/five_steps")
    released = replace(REGIONAL, keep_ignored=True, cells_per_view=4000, epsilon=epsilon)
    term = RegionalContrast(released, channels=16)
    for step in range(5):
        views = _step(case, step)
        picks = iter([case.tensor(f"picks_{network}_{step}") for network in ("student", "teacher")])
        with mock.patch("torch.randperm", lambda *_, picks=picks, **__: next(picks)):
            loss = term(views)
        loss.backward()
        case.expect(f"loss_{step}", loss, variation=epsilon == 0)
        case.expect(f"gradient_{step}", views[CUTMIX].embeddings.grad, variation=epsilon == 0)
        anchors = term._anchors(views[TARGET], views[CUTMIX])[2]
        case.expect(f"anchors_{step}", anchors.sum())
        term.update(views)
        rows, labels = _oldest_first(term.bank)
        case.expect(f"bank_rows_{step}", len(rows))
        case.expect(f"bank_{step}", rows)
        case.expect(f"bank_label_{step}", labels)


def _oldest_first(bank):
    turned = -int(bank.cursor)
    rows, labels = bank.embeddings.roll(turned, 0), bank.labels.roll(turned, 0)
    filled = labels != EMPTY
    return rows[filled], labels[filled]


def test_without_void_cells_the_memory_is_another():
    case = answer("rccr/five_steps")
    term = RegionalContrast(replace(REGIONAL, cells_per_view=4000), channels=16)
    picks = iter([case.tensor("picks_student_0"), case.tensor("picks_teacher_0")])
    with mock.patch("torch.randperm", lambda *_, **__: next(picks)):
        term.update(_step(case, 0))
    assert case.differs("bank_rows_0", len(term.bank))


def test_the_ramp_is_the_release_s():
    case, term = answer("rccr/ramp"), RegionalContrast(REGIONAL, channels=4)
    case.expect("weight", [term.weight_at(0, share) for share in case.inputs["progress"].tolist()])
    flat = RegionalContrast(replace(REGIONAL, ramp=False), channels=4)
    assert case.differs("weight", np.array([flat.weight_at(0, 0.5)] * 6))


def test_the_teacher_follows_as_in_the_release():
    case, student = answer("rccr/ema"), small_segmenter()
    student.head = nn.Conv2d(4, 3, 1)
    with torch.no_grad():
        student.head.weight.copy_(case.tensor("start"))
        teacher = Teacher(student, momentum=case.constants["alpha"], batch_statistics=True)
        for step in (0, 1, 2, 150):
            student.head.weight.copy_(case.tensor(f"student_{step}"))
            teacher.update(student, step)
            case.expect(f"teacher_after_{step}", teacher.network.head.weight)


def test_the_mixed_image_its_labels_weights_and_loss_are_the_release_s():
    case = answer("rccr/mixed_image")
    labels, classes = case.tensor("source_label").to(torch.uint8), 7
    numbers = torch.full((2, classes + 1), 0.9)
    for image, places in enumerate(case.constants["chosen_places"]):
        present = labels[image].unique().tolist()
        for place in places:
            numbers[image, min(present[place], classes)] = 0.1 + place / 100
    with mock.patch("torch.rand", lambda *_, **__: numbers):
        mask = class_mask(labels, classes, torch.Generator(), ignore_is_class=True)
    case.expect("mask", mask)
    source, target = case.tensor("source_image"), case.tensor("target_image")
    case.expect("mixed_image", paste(mask, source, target))
    guessed, sure = pseudo_labels(case.tensor("teacher_logits"), (16, 20))
    mixed = paste(mask, labels, guessed)
    case.expect("mixed_label", mixed)
    share = (sure >= case.constants["confidence"]).float().mean()
    case.expect("confident_share", share)
    weight = share.expand(2, 16, 20).masked_fill(mask, 1.0)
    case.expect("pixel_weight", weight)
    logits = case.tensor("student_logits").requires_grad_()
    loss = pixel_loss(logits, mixed, weight, mean_over="all")
    loss.backward()
    case.expect("loss", loss)
    case.expect("gradient", logits.grad)
    assert case.differs("loss", pixel_loss(logits, mixed, weight))


def _loaded(layer, case, number):
    with torch.no_grad():
        layer.weight.copy_(case.tensor(f"weight_{number}"))
        layer.bias.copy_(case.tensor(f"bias_{number}"))


def test_the_projection_head_is_the_release_s():
    case = answer("rccr/projection_head")
    features = case.tensor("features").requires_grad_()
    head, linear = Projector(24, 10), Projector(24, 10, kind="linear")
    _loaded(head.layers[0], case, 0)
    _loaded(head.layers[2], case, 2)
    _loaded(linear.layers, case, 2)
    embedding = head(features)
    case.expect("embedding", embedding)
    flat = torch.arange(embedding.numel(), dtype=torch.float64)
    probe = torch.cos(0.37 * flat + 0.11).float()
    (embedding.flatten() * probe).sum().backward()
    case.expect("gradient_of_probe", features.grad)
    assert case.differs("embedding", linear(features))


def test_the_classifier_has_the_two_dilations_of_the_release():
    case = answer("rccr/classifier_head")
    for dilations in ((6, 12), (6, 12, 18, 24)):
        head = DeepLabV2((2048,), 3, dilations)
        for number, branch in enumerate(head.branches):
            _loaded(branch, case, number)
        logits = head([case.tensor("features")])
        if len(dilations) == 2:
            case.expect("logits", logits)
        else:
            assert case.differs("logits", logits)
