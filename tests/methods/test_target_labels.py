"""How the teacher labels target images, and how much their pixels count."""

from dataclasses import replace

import torch

from tests.methods.test_self_training import _batch, _objective
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.views import cell_view
from udaseg.models.pixels import to_unit_range


def labelling(objective, **changes):
    """Have the objective label with other settings of its teacher."""
    teacher = replace(objective.spec.teacher, **changes)
    objective.spec = replace(objective.spec, teacher=teacher)
    return objective


def _sharp(objective):
    """Make the teacher's probabilities differ from cell to cell."""
    for network in (objective.student, objective.teacher.network):
        with torch.no_grad():
            for branch in network.head.branches:
                branch.weight.mul_(300)
    return objective


def test_a_mirrored_teacher_says_the_mean_of_both_probabilities():
    objective = _sharp(labelling(_objective(), mirror=True))
    images = to_unit_range(_batch().target_images)
    plain, mirrored = (
        objective.teacher(each).logits.softmax(1) for each in (images, images.flip(-1))
    )
    expected = (plain + mirrored.flip(-1)) / 2
    context = objective._teach(_batch())
    torch.testing.assert_close(context.target_output.logits.softmax(1), expected)
    labels, confidence = pseudo_labels(expected.log(), (32, 48))
    assert torch.equal(context.target_labels, labels)
    torch.testing.assert_close(context.target_confidence, confidence)
    assert (labels != pseudo_labels(plain.log(), (32, 48))[0]).any(), "the mirror image counts"
    # of a mirrored image, it says the mirror image of what it says
    turned = replace(_batch(), target_images=_batch().target_images.flip(-1))
    again = objective._teach(turned).target_output.logits
    torch.testing.assert_close(again.flip(-1), context.target_output.logits)
    view = cell_view(context.target_output, None)
    assert torch.equal(view.predictions, expected.argmax(1))
