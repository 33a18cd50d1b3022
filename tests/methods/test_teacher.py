"""The mean teacher: its moving average, its momentum ramp, and that it has no gradient."""

import pytest
import torch
from torch import nn

from tests.support.small import small_segmenter
from udaseg.methods.teacher import Teacher


def test_first_step_copies_the_student_and_later_steps_average():
    student = small_segmenter()
    teacher = Teacher(student, momentum=0.9, batch_statistics=False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 0)
    for mine, theirs in zip(teacher.network.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before = [parameter.clone() for parameter in teacher.network.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 3)  # 1 - 1/4 = 0.75 is below 0.9
    for old, mine, new in zip(
        before, teacher.network.parameters(), student.parameters(), strict=True
    ):
        assert torch.allclose(mine, 0.75 * old + 0.25 * new, atol=1e-6)


def test_momentum_bounds_the_ramp():
    student = small_segmenter()
    teacher = Teacher(student, momentum=0.9, batch_statistics=False)
    old = [parameter.clone() for parameter in teacher.network.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 10_000)
    for before, mine in zip(old, teacher.network.parameters(), strict=True):
        assert torch.allclose(mine, before + 0.1, atol=1e-6)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_a_look_changes_nothing_and_carries_no_gradient(batch_statistics):
    teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=batch_statistics)
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen = teacher(torch.rand(2, 3, 32, 32), embed=True)
    assert not seen.logits.requires_grad
    assert not seen.embeddings.requires_grad
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_batch_statistics_depend_on_the_batch_and_running_ones_do_not():
    images = torch.rand(2, 3, 32, 32)
    for batch_statistics in (False, True):
        teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=batch_statistics)
        alone = teacher(images[:1]).logits
        together = teacher(torch.cat([images[:1], images[1:] * 0.1])).logits[:1]
        assert torch.allclose(alone, together, atol=1e-5) != batch_statistics


@pytest.mark.parametrize("batch_norm", ["train", "affine_frozen", "frozen"])
def test_with_equal_weights_a_teacher_of_batch_statistics_says_what_the_student_says(batch_norm):
    """Compares with the student in training mode; frozen norms do not use batch statistics."""
    student = small_segmenter(batch_norm=batch_norm, head_norm=True)
    teacher = Teacher(student, momentum=0.9, batch_statistics=True)
    norms = [part for part in student.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [batch_norm != "frozen"] * 2 + [True]
    for network in (student, teacher.network):
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.fill_(0.3)
    student.train()
    teacher.train()
    images = torch.rand(2, 3, 32, 32)
    seen = teacher(images).logits
    assert torch.allclose(seen, student(images).logits, atol=1e-6)
    alone = teacher(images[:1]).logits
    assert not torch.allclose(seen[:1], alone, atol=1e-4), "the head's norm goes by the batch"


def test_the_projection_head_follows_too():
    student = small_segmenter()
    teacher = Teacher(student, momentum=0.99, batch_statistics=False)
    with torch.no_grad():
        for parameter in student.projector.parameters():
            parameter.zero_()
    teacher.update(student, 0)
    assert all(parameter.abs().sum() == 0 for parameter in teacher.network.projector.parameters())
