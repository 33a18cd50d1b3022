"""DAFormer's release: the chance of a rare class, and its teacher. (Its mixing is in test_dacs.)"""

import numpy as np
from torch import nn

from tests.known_answers.reader import answer
from udaseg.data.loading.rare_class import class_probabilities
from udaseg.methods.teacher import Teacher


def test_rare_classes_are_drawn_as_often_as_there():
    case = answer("daformer/rare_class_sampling")
    pixels = case.inputs["pixels"].sum(0)
    for temperature in case.constants["temperatures"]:
        case.expect(f"probability_{temperature}", class_probabilities(pixels, temperature))
    case.expect("order", np.argsort(pixels, kind="stable"))


def test_the_teacher_follows_as_there_but_after_the_step():
    case = answer("daformer/ema")
    student = nn.Conv2d(4, 3, 1, bias=False)
    student.frozen_norms = list
    student.weight.data = case.tensor("student_0")
    teacher = Teacher(student, momentum=case.constants["alpha"], batch_statistics=False)
    case.expect("teacher_in_iteration_0", teacher.network.weight)
    # the release moves before step i with the student of step i - 1; ours is called after it
    for step in (1, 2, 2000):
        student.weight.data = case.tensor(f"student_{step}")
        teacher.update(student, step)
        case.expect(f"teacher_in_iteration_{step}", teacher.network.weight)
