"""The mean teacher: its moving average, its momentum ramp, and that it has no gradient."""

import pytest
import torch
from torch import nn

from tests.support.operators import OperatorCount
from tests.support.small import small_segmenter
from udaseg.methods.teacher import Teacher


@pytest.mark.parametrize(("ramp", "kept"), [("from_zero", 0.0), ("from_half", 0.5)])
def test_the_first_update_keeps_none_or_half_of_the_teacher(ramp, kept):
    student = small_segmenter()
    teacher = Teacher(student, momentum=0.9, batch_statistics=False, ramp=ramp)
    before = [parameter.clone() for parameter in teacher.network.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 0)
    after = zip(before, teacher.network.parameters(), student.parameters(), strict=True)
    for old, mine, new in after:
        assert torch.allclose(mine, kept * old + (1 - kept) * new, atol=1e-6)


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


def changed(student):
    """Return the student after a training pass and a change of its weights."""
    student.train()
    student(torch.rand(2, 3, 32, 32))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    return student


def test_an_update_takes_two_operators_and_the_same_bits_as_one_by_one():
    student = changed(small_segmenter(head_norm=True))
    teacher = Teacher(student, momentum=0.9, batch_statistics=True)
    expected = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    changed(student)
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            expected[name].lerp_(value, 1 - 0.75)
        else:
            expected[name].copy_(value)
    with OperatorCount() as operators:
        teacher.update(student, 3)
    assert operators.counts == {"aten._foreach_lerp_.Scalar": 1, "aten._foreach_copy_.default": 1}
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert all(value == 2 for name, value in expected.items() if name.endswith("tracked"))


def test_a_tensor_that_two_parts_share_is_averaged_once():
    student = small_segmenter(projector=False)
    student.head.branches[1].bias = student.head.branches[0].bias
    teacher = Teacher(student, momentum=0.9, batch_statistics=False)
    before = teacher.network.head.branches[0].bias.clone()
    with torch.no_grad():
        student.head.branches[0].bias.add_(1.0)
    teacher.update(student, 3)
    assert torch.allclose(teacher.network.head.branches[1].bias, before + 0.25)


def in_bf16(network, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return network(images, embed=True)


def test_a_pass_in_bf16_has_the_bits_of_autocast_with_weights_cast_in_one_operator():
    teacher = Teacher(small_segmenter(head_norm=True), momentum=0.9, batch_statistics=True)
    teacher.network.to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    counts, seen = [], []
    for network in (teacher, teacher.network):
        with OperatorCount() as operators:
            seen.append(in_bf16(network, images))
        counts.append(operators.counts)
    for mine, theirs in zip(vars(seen[0]).values(), vars(seen[1]).values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()
    casts = [count["aten._to_copy.default"] for count in counts]
    # not the last of the projector, which is computed in float32
    weights = [part.weight for part in teacher.modules() if type(part) is nn.Conv2d]
    assert casts[1] - casts[0] == 2 * len(weights)  # each has a bias
    assert counts[0]["aten._foreach_copy_.default"] == 1
    assert {part.dtype for part in teacher.parameters()} == {torch.float32}


def test_in_float32_no_weight_is_copied():
    teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=False)
    with OperatorCount() as operators:
        teacher(torch.rand(1, 3, 32, 32))
    assert not [name for name in operators.counts if "copy" in name]


def test_a_pass_in_bf16_has_the_weights_of_now():
    teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=False)
    images = torch.rand(1, 3, 32, 32)
    before = in_bf16(teacher, images)
    teacher.load_state_dict(
        Teacher(small_segmenter(seed=1), momentum=0.9, batch_statistics=False).state_dict()
    )
    after = in_bf16(teacher, images)
    assert not torch.equal(before.logits, after.logits)
    assert torch.equal(after.logits, in_bf16(teacher.network, images).logits)


def test_weights_are_back_after_a_pass_that_fails():
    teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=False)
    before = list(teacher.parameters())
    with pytest.raises(RuntimeError):
        in_bf16(teacher, torch.rand(1, 4, 32, 32))
    assert all(one is other for one, other in zip(teacher.parameters(), before, strict=True))


class StandardizedConv(nn.Conv2d):
    """A convolution that does more with its weight than convolve."""

    def forward(self, images):
        """Return the convolution by the standardized weight."""
        scaled = self.weight / self.weight.std()
        return self._conv_forward(images, scaled, self.bias)


def test_a_layer_that_computes_with_its_weight_keeps_it_in_float32():
    student = small_segmenter()
    student.backbone.rest[0] = StandardizedConv(6, 8, 3, 2, 1)
    teacher = Teacher(student, momentum=0.9, batch_statistics=False)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(in_bf16(teacher, images).logits, in_bf16(teacher.network, images).logits)
