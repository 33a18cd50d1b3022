"""How the teacher labels target images, and how much their pixels count."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.test_self_training import CLASSES, _batch, _objective, _step, _trainer
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.target_labels import TargetWeights
from udaseg.methods.views import cell_view
from udaseg.models.pixels import to_unit_range
from udaseg.recipe.methods import Mixing
from udaseg.training.step import merge_reports


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


PER_CLASS = Mixing(ignore_is_class=False, confidence=0.9, share_over="class", class_quantile=0.8)


def _told(seed, batch=4):
    """Return labels and confidence; class 0 is sure, class 3 is not, and class 4 is absent."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, CLASSES - 1, (batch, 64, 96)).astype(np.uint8)
    highest = np.array([1.0, 0.95, 0.8, 0.5, 1.0])[labels]
    confidence = highest - 0.3 * numbers.random(labels.shape)
    return torch.from_numpy(labels), torch.from_numpy(confidence.astype(np.float32))


def test_a_class_is_sure_at_its_own_quantile_of_the_steps_before_and_at_most_the_limit():
    weights = TargetWeights(PER_CLASS, CLASSES)
    assert torch.equal(weights.limits(), torch.full((CLASSES,), 0.9)), "nothing was seen yet"
    seen = [_told(seed) for seed in range(5)]
    for told in seen:
        weights.update(weights.numbers(*told))
    for number, limit in enumerate(weights.limits().tolist()):
        of_class = [confidence[labels == number].numpy() for labels, confidence in seen]
        values = np.concatenate(of_class)
        expected = min(0.9, np.quantile(values, 0.8)) if values.size else 0.9
        assert limit == pytest.approx(expected, abs=0.02), number
    assert weights.limits()[3] < 0.5


def test_a_pixel_weighs_as_much_as_the_share_of_sure_pixels_of_its_class():
    weights = TargetWeights(PER_CLASS, CLASSES)
    weights.update(weights.numbers(*_told(0)))
    labels, confidence = _told(1)
    found = weights.weight(labels, confidence, weights.numbers(labels, confidence))
    limits = weights.limits()
    for number in range(CLASSES - 1):
        is_class = labels == number
        share = (confidence[is_class] >= limits[number]).float().mean()
        torch.testing.assert_close(found[is_class], share.expand(int(is_class.sum())))
    assert 0.15 < found[labels == 3].mean() < 0.3, "a class is not silenced"


def test_ranks_weigh_and_remember_as_one_process():
    told = _told(1)
    halves = [[part[rank::2] for part in told] for rank in range(2)]
    one, two = TargetWeights(PER_CLASS, CLASSES), TargetWeights(PER_CLASS, CLASSES)
    for each in (one, two):
        each.update(each.numbers(*_told(0)))
    whole, (first, second) = one.numbers(*told), [two.numbers(*half) for half in halves]
    sums = {name: first[name].double() + second[name].double() for name in first}
    for rank, half in enumerate(halves):
        expected = one.weight(*told, whole)[rank::2]
        assert torch.equal(two.weight(*half, sums), expected)
    one.update(whole)
    two.update(sums)
    assert torch.equal(one.histogram, two.histogram)


def _per_class():
    return _sharp(_objective(share_over="class", confidence=0.9))


def test_the_classes_of_a_step_change_the_weights_of_the_next():
    objective = _per_class()
    trainer = _trainer(objective)
    first = _step(objective, trainer, _batch())
    assert objective.weights.histogram.sum() > 0
    labels, confidence = (
        getattr(objective._teach(_batch(1)), f"target_{name}") for name in ("labels", "confidence")
    )
    sure = confidence >= objective.weights.limits()[labels.long()]
    report = objective(_batch(1))
    assert report.figures["confident"] == sure.float().mean()
    both = merge_reports([replace(first, views=None), replace(report, views=None)])
    of_both = first.seen["histogram"] + report.seen["histogram"]
    assert torch.equal(both.seen["histogram"], of_both)


def test_the_confidence_of_classes_is_part_of_a_checkpoint():
    objective = _per_class()
    _step(objective, _trainer(objective), _batch())
    twin = _per_class()
    twin.load_state_dict(objective.state_dict())
    assert torch.equal(twin.weights.limits(), objective.weights.limits())
    assert twin(_batch(1)).total == objective(_batch(1)).total
    assert "weights.histogram" not in _objective().state_dict()
