"""DAFormer's release: the chance of a rare class, the weights of pseudo-labels, and its teacher.

Its mixing is in test_dacs.
"""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from tests.known_answers.reader import answer
from tests.support.small import shipped
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.loading.batches import Batch
from udaseg.data.loading.rare_class import class_probabilities
from udaseg.methods.contrast.feature_distance import FrozenDistance, thing_classes
from udaseg.methods.objectives import self_training
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import SOURCE, Views, labelled_view
from udaseg.models.segmenter import SegmenterOutput
from udaseg.recipe.contrast import FeatureDistance

METHOD = shipped("gta5_cityscapes/sepico_release").method  # of its base, DAFormer


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


class _Given(nn.Module):
    """A network that returns the logits of the case for any images."""

    align_corners, projector = False, None

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images, *, embed=False):
        return SegmenterOutput(self.logits, self.logits, None)


def _target_labels_and_weights(case, **changes):
    """Return labels and weights of the mixed loss in a step that pastes nothing."""
    rows = case.constants["ignore_top"], case.constants["ignore_bottom"]
    mixing = replace(METHOD.mixing, **{"ignore_rows": rows, **changes})
    network = _Given(case.tensor("logits"))
    objective = self_training.SelfTraining(
        replace(METHOD, mixing=mixing), network, network, num_classes=7, regularizers={}
    )
    images = torch.zeros(2, 3, 24, 32, dtype=torch.uint8)
    nothing = torch.full((2, 24, 32), IGNORE, dtype=torch.uint8)
    unmixed = mock.patch.object(self_training, "class_mask", lambda *_, **__: nothing != IGNORE)
    recorded = mock.patch.object(self_training, "pixel_loss", return_value=torch.ones(()))
    with unmixed, recorded as loss:
        objective(Batch(0, 0.0, 0, images, nothing, images))
    _, ((_, labels, weights), _) = loss.call_args_list
    return labels, weights.expand(labels.shape)


def test_pseudo_labels_weigh_as_much_as_there_and_nothing_in_ignored_rows():
    case = answer("daformer/pseudo_label_weight")
    assert METHOD.mixing.confidence == case.constants["threshold"]
    labels, weights = _target_labels_and_weights(case)
    case.expect("pseudo_label", labels)
    case.expect("weight", weights)
    case.expect("largest_weight", weights.max())


@pytest.mark.parametrize("changes", [{"share_over": "image"}, {"ignore_rows": (0, 0)}])
def test_a_share_of_each_image_or_all_rows_weigh_otherwise(changes):
    case = answer("daformer/pseudo_label_weight")
    assert case.differs("weight", _target_labels_and_weights(case, **changes)[1], bound=0.01)


def _distance_of_things(case, labels):
    """Return the term on the features of the case, its labels on cells, and the features."""
    student = case.tensor("student").requires_grad_()
    spec = FeatureDistance("thing_class", weight=case.constants["weight"])
    assert spec.share == case.constants["min_ratio"]
    things = thing_classes(spec, builtin_label_table("cityscapes19").classes.names)
    assert list(things) == case.constants["classes"]
    frozen = nn.Identity()  # it is shown the features
    term = FrozenDistance(spec, frozen, channels=8, things=things)
    output = SegmenterOutput(torch.zeros(2, 19, 4, 6), student, None)
    view = labelled_view(output, labels, term.needs[0].options["label_share"])
    views = Views(0, 0.0, 0, {SOURCE: view}, images={SOURCE: case.tensor("imagenet")})
    return term(views), view.labels, student


def test_the_distance_of_things_is_that_of_the_release():
    case = answer("daformer/feature_distance")
    loss, cells, student = _distance_of_things(case, case.tensor("label"))
    loss.backward()
    case.expect("label_on_cells", cells)
    case.expect("mask", sum(cells == thing for thing in case.constants["classes"]))
    case.expect("loss", loss)
    case.expect("gradient", student.grad)


def test_without_a_thing_the_distance_is_0_where_the_release_has_nan():
    case = answer("daformer/feature_distance")
    case.expect("loss_of_no_cell_is_nan", 1)
    loss, _, student = _distance_of_things(case, torch.zeros_like(case.tensor("label")))
    loss.backward()
    assert loss == 0
    case.expect("largest_gradient_of_no_cell", student.grad.abs().max())
