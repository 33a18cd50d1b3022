"""A warm-up trains as `source_only` does; then self-training starts from the warm student."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.methods.test_self_training import CLASSES, _batch, _regional, _step, _trainer
from tests.support.small import small_segmenter
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.teacher import Teacher
from udaseg.recipe.methods import Mixing, StrongAugmentation, warm_up_steps
from udaseg.recipe.methods import SelfTraining as Spec
from udaseg.recipe.methods import SourceOnly as SourceOnlySpec
from udaseg.recipe.methods import Teacher as TeacherSpec

SPEC = Spec(
    kind="self_training",
    teacher=TeacherSpec(momentum=0.99, batch_statistics=False),
    mixing=Mixing(ignore_is_class=False, confidence=0.2, share_over="batch"),
    augmentation=StrongAugmentation(0.25, 0.8, 0.5, (0.15, 1.15)),
    mix_weight=1.0,
)


def _objective(warm_up, steps, *, regional=False):
    student = small_segmenter(classes=CLASSES, projector=regional)
    terms = {"regional": _regional(ramp=True, cells_per_view=12)} if regional else {}
    teacher = Teacher(student, momentum=0.99, batch_statistics=False)
    spec = replace(SPEC, warm_up=warm_up)
    objective = SelfTraining(
        spec, student, teacher, num_classes=CLASSES, regularizers=terms, steps=steps
    )
    return objective.train()


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_with_a_share_of_1_a_run_is_source_only_bit_for_bit():
    plain = SourceOnly(small_segmenter(classes=CLASSES, projector=False)).train()
    warm = _objective(1.0, steps=3)
    trainers = _trainer(plain), _trainer(warm)
    for step in range(3):
        losses = [
            _step(objective, trainer, _batch(step)).parts
            for objective, trainer in zip((plain, warm), trainers, strict=True)
        ]
        assert losses[0].keys() == losses[1].keys() == {"source"}
        assert _same(warm.teacher.network.state_dict(), warm.student.state_dict())
    assert _same(plain.student.state_dict(), warm.student.state_dict())
    states = [trainer.state_dict()["state"] for trainer in trainers]
    assert all(_same(states[0][number], states[1][number]) for number in states[0])


def test_what_follows_is_a_run_of_its_own_from_the_warm_student_with_the_same_optimizer():
    warm = _objective(0.4, steps=5, regional=True)
    trainer = _trainer(warm)
    for step in range(2):
        _step(warm, trainer, _batch(step))
    later = _objective(0.0, steps=3, regional=True)
    later.student.load_state_dict(warm.student.state_dict())
    later.teacher.network.load_state_dict(warm.student.state_dict())
    its_trainer = _trainer(later)
    its_trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for step in range(3):
        report = _step(warm, trainer, _batch(2 + step))
        same_images = replace(_batch(2 + step), step=step, progress=step / 3)
        assert report.parts == _step(later, its_trainer, same_images).parts
        assert report.parts.keys() == {"source", "mixed", "regional"}
    assert _same(warm.state_dict(), later.state_dict())


def test_the_weight_of_mixed_images_rises_in_the_share_of_the_steps_after_the_warm_up():
    objective = _objective(0.5, steps=20)
    objective.spec = replace(objective.spec, mix_ramp=0.4, mix_weight=2.0)
    losses = []
    for step in (10, 11, 14, 19):  # 0, 1, 4 and 9 of 10
        same_images = replace(_batch(), step=step, progress=step / 20)
        losses.append(objective(same_images).parts["mixed"].item())
    assert losses[2] > 0
    assert losses == pytest.approx([0, losses[2] / 4, losses[2], losses[2]])


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.263, 950, 250), (0, 9, 0), (1, 9, 9)])
def test_the_share_is_rounded_to_steps(share, steps, expected):
    assert warm_up_steps(replace(SPEC, warm_up=share), steps) == expected


@pytest.mark.parametrize(("statistics", "expected"), [(0, 0), (200, 9)])
def test_adabn_is_a_warm_up_before_the_statistics_of_the_target(statistics, expected):
    spec = SourceOnlySpec(kind="source_only", target_statistics=statistics)
    assert warm_up_steps(spec, 9) == expected
