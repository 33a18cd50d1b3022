"""How the teacher labels target images, and how much their pixels count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.methods.test_self_training import (
    CLASSES,
    _batch,
    _objective,
    _regional,
    _step,
    _trainer,
)
from udaseg.data.labels.classes import IGNORE
from udaseg.methods.mixing import fill_edge_rows
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.target_labels import TargetWeights
from udaseg.methods.views import AUGMENTED, STUDENT_MAKERS, Need, cell_view, on_cells
from udaseg.models.pixels import to_unit_range
from udaseg.recipe.methods import Mixing, Prior
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


def test_a_mirrored_teacher_gives_the_mean_of_both_probabilities():
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
    # for a mirrored image, its output is the mirror image of that for the image
    turned = replace(_batch(), target_images=_batch().target_images.flip(-1))
    again = objective._teach(turned).target_output.logits
    torch.testing.assert_close(again.flip(-1), context.target_output.logits)
    view = cell_view(context.target_output, None)
    assert torch.equal(view.predictions, expected.argmax(1))


@pytest.mark.parametrize(("scale", "size"), [(1.5, (48, 72)), (0.5, (16, 24))])
def test_labels_of_images_at_another_scale_are_those_of_the_resized_images(scale, size):
    objective = _sharp(labelling(_objective(), scale=scale, mirror=True))
    images = to_unit_range(_batch().target_images)
    resized = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    plain, mirrored = (
        objective.teacher(each).logits.softmax(1) for each in (resized, resized.flip(-1))
    )
    labels, confidence = pseudo_labels(((plain + mirrored.flip(-1)) / 2).log(), (32, 48))
    context = objective._teach(_batch())
    assert torch.equal(context.target_labels, labels)
    torch.testing.assert_close(context.target_confidence, confidence)
    own = labelling(objective, scale=1.0)._teach(_batch()).target_labels
    assert (labels != own).any(), "the scale counts"
    assert labels.shape == own.shape


def test_a_scale_of_null_is_that_of_the_network(monkeypatch):
    objective = labelling(_objective(), scale=None)
    assert objective._teach(_batch()).label_output.features.shape[-2:] == (4, 6)
    monkeypatch.setattr(type(objective.student.backbone), "has_tokens", True)
    assert objective._teach(_batch()).label_output.features.shape[-2:] == (6, 9)


def test_regularizers_see_the_teachers_output_at_the_students_size():
    objective = _sharp(labelling(_objective(_regional()), scale=2))
    context = objective._teach(_batch())
    assert context.label_output.features.shape[-2:] == (8, 12)
    assert context.target_output.features.shape[-2:] == context.grid == (4, 6)
    own = objective.teacher(to_unit_range(_batch().target_images), embed=True)
    assert torch.equal(context.target_output.embeddings, own.embeddings)
    assert objective(_batch()).total.isfinite()


def test_the_prior_is_that_of_the_labels_of_resized_images():
    objective = labelling(_corrected("uniform"), scale=1.5)
    images = to_unit_range(_batch().target_images)
    resized = F.interpolate(images, (48, 72), mode="bilinear", antialias=True)
    expected = objective.teacher(resized).logits.softmax(1).mean((0, 2, 3))
    objective.after_step(0, objective(_batch()))
    torch.testing.assert_close(objective.prior.of_teacher, expected)


def test_labels_outside_of_a_step_are_those_of_a_step():
    corrected = _corrected("uniform")
    corrected.after_step(0, corrected(_batch()))
    for changes in ({}, {"scale": 1.5}, {"scale": 1.5, "mirror": True}):
        objective = labelling(corrected, **changes)
        context = objective._teach(_batch())
        labels, confidence = objective.label(context.target)
        assert torch.equal(labels, context.target_labels)
        assert torch.equal(confidence, context.target_confidence)


@pytest.mark.parametrize("rows", [(0, 0), (8, 0)])
def test_augmented_images_have_labels_and_confidence_of_one_pass(rows):
    objective = _sharp(labelling(_objective(_regional()), scale=2))
    context = replace(objective._teach(_batch()), ignore_rows=rows)
    given = STUDENT_MAKERS[AUGMENTED](context, Need(AUGMENTED)).labels
    trusted = fill_edge_rows(context.target_labels, rows, IGNORE)
    assert torch.equal(given.labels, on_cells(trusted.float(), context.grid).long())
    assert torch.equal(given.label_confidence, on_cells(context.target_confidence, context.grid))


PER_CLASS = Mixing(ignore_is_class=False, confidence=0.9, share_over="class", class_quantile=0.8)


def _labels_and_confidence(seed, batch=4):
    """Return labels and confidence; class 0 is sure, class 3 is not, and class 4 is absent."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, CLASSES - 1, (batch, 64, 96)).astype(np.uint8)
    highest = np.array([1.0, 0.95, 0.8, 0.5, 1.0])[labels]
    confidence = highest - 0.3 * numbers.random(labels.shape)
    return torch.from_numpy(labels), torch.from_numpy(confidence.astype(np.float32))


def test_a_class_is_sure_at_its_own_quantile_of_the_steps_before_and_at_most_the_limit():
    weights = TargetWeights(PER_CLASS, CLASSES)
    assert torch.equal(weights.limits(), torch.full((CLASSES,), 0.9)), "nothing was seen yet"
    seen = [_labels_and_confidence(seed) for seed in range(5)]
    for given in seen:
        weights.update(weights.numbers(*given))
    for number, limit in enumerate(weights.limits().tolist()):
        of_class = [confidence[labels == number].numpy() for labels, confidence in seen]
        values = np.concatenate(of_class)
        expected = min(0.9, np.quantile(values, 0.8)) if values.size else 0.9
        assert limit == pytest.approx(expected, abs=0.02), number
    assert weights.limits()[3] < 0.5


def test_half_of_the_pixels_of_each_class_count_however_sure_they_are():
    spec = replace(PER_CLASS, confidence=1.0, class_quantile=0.5)
    weights = TargetWeights(spec, 2)
    labels = torch.arange(2).repeat_interleave(32)[None, :, None].expand(4, 64, 96)
    sureness = torch.tensor([9.0, 0.0])[labels] + torch.randn(4, 64, 96)
    confidence = sureness.sigmoid()
    weights.update(weights.numbers(labels, confidence))
    found = weights.weight(labels, confidence, {})
    for number in range(2):
        assert found[labels == number].mean() == pytest.approx(0.5, abs=0.05), number


def test_the_sure_pixels_of_each_class_count_fully_and_others_not_at_all():
    weights = TargetWeights(PER_CLASS, CLASSES)
    weights.update(weights.numbers(*_labels_and_confidence(0)))
    labels, confidence = _labels_and_confidence(1)
    found = weights.weight(labels, confidence, weights.numbers(labels, confidence))
    limits = weights.limits()
    for number in range(CLASSES - 1):
        is_class = labels == number
        assert torch.equal(found[is_class], (confidence[is_class] >= limits[number]).float())
    assert 0.15 < found[labels == 3].mean() < 0.35, "a class is not silenced"
    assert found[labels == 0].mean() > 0.3, "a sure class counts up to the common limit"


@pytest.mark.parametrize("classes", [65, 150])
def test_unsure_classes_of_many_count_too(classes):
    """The best of many classes can have a probability below the first bin of the histogram."""
    generator = torch.Generator().manual_seed(classes)
    logits = 0.1 * torch.randn(2, classes, 128, 128, generator=generator)
    confidence, labels = logits.softmax(1).max(1)
    assert confidence.max() < 0.05
    weights = TargetWeights(replace(PER_CLASS, class_quantile=0.8), classes)
    weights.update(weights.numbers(labels, confidence))
    assert (weights.weight(labels, confidence, {}) == 1).all()


def test_rows_that_are_not_trained_on_do_not_set_the_limits():
    labels, confidence = _labels_and_confidence(3)
    top, bottom = 4, 8
    weights = TargetWeights(replace(PER_CLASS, ignore_rows=(top, bottom)), CLASSES)
    rows = slice(top, labels.shape[1] - bottom)
    given = labels[:, rows], confidence[:, rows]
    expected = TargetWeights(PER_CLASS, CLASSES).numbers(*given)["histogram"]
    assert torch.equal(weights.numbers(labels, confidence)["histogram"], expected)


def test_ranks_weigh_and_remember_as_one_process():
    given = _labels_and_confidence(1)
    halves = [[part[rank::2] for part in given] for rank in range(2)]
    one, two = TargetWeights(PER_CLASS, CLASSES), TargetWeights(PER_CLASS, CLASSES)
    for each in (one, two):
        each.update(each.numbers(*_labels_and_confidence(0)))
    both = one.numbers(*given)
    first, second = (two.numbers(*half) for half in halves)
    sums = {name: first[name].double() + second[name].double() for name in first}
    for rank, half in enumerate(halves):
        expected = one.weight(*given, both)[rank::2]
        assert torch.equal(two.weight(*half, sums), expected)
    one.update(both)
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


def _corrected(towards, exponent=0.5):
    prior = Prior(exponent=exponent, towards=towards, momentum=0.9)
    objective = _objective()
    spec = replace(objective.spec, teacher=replace(objective.spec.teacher, prior=prior))
    teacher = objective.teacher
    objective = SelfTraining(
        spec, objective.student, teacher, num_classes=CLASSES, regularizers={}, steps=9
    )
    return _sharp(objective.train())


def _classes_of(batch):
    """Return the share of each class among the labels that are counted."""
    labels = batch.source_labels[:, ::4, ::4]
    return (
        torch.stack([(labels == number).sum() for number in range(CLASSES)]) / labels.ne(255).sum()
    )


@pytest.mark.parametrize("towards", ["uniform", "source"])
def test_probabilities_are_divided_by_their_means_of_the_steps_before(towards):
    objective = _corrected(towards)
    trainer, batches = _trainer(objective), [_batch(step, size=(40, 56)) for step in range(3)]
    said, in_source = [], []
    for batch in batches[:2]:
        logits = objective.teacher(to_unit_range(batch.target_images)).logits
        said.append(logits.softmax(1).mean((0, 2, 3)))
        in_source.append(_classes_of(batch))
        _step(objective, trainer, batch)
    # the first mean is that of the first step, the second that of both: 1 - 1/(step + 1) < 0.9
    factor = (sum(said) / 2) ** -0.5
    if towards == "source":
        factor = factor * (sum(in_source) / 2) ** 0.5
    plain = objective.teacher(to_unit_range(batches[2].target_images)).logits.softmax(1)
    expected = plain * factor.view(1, -1, 1, 1)
    expected = expected / expected.sum(1, keepdim=True)
    context = objective._teach(batches[2])
    torch.testing.assert_close(context.target_output.logits.softmax(1), expected)
    labels, confidence = pseudo_labels(expected.log(), (40, 56))
    assert torch.equal(context.target_labels, labels)
    torch.testing.assert_close(context.target_confidence, confidence)
    assert (labels != pseudo_labels(plain.log(), (40, 56))[0]).any(), "the correction counts"


def test_the_first_step_and_the_exponent_0_correct_nothing():
    for exponent, steps in ((1.0, 0), (0.0, 2)):
        objective = _corrected("source", exponent)
        trainer = _trainer(objective)
        for step in range(steps):
            _step(objective, trainer, _batch(step))
        plain = objective.teacher(to_unit_range(_batch(5).target_images)).logits
        found = objective._teach(_batch(5)).target_output.logits
        torch.testing.assert_close(found.softmax(1), plain.softmax(1))


def test_a_source_without_a_labelled_pixel_and_a_class_never_predicted_stay_finite():
    objective = _corrected("source")
    with torch.no_grad():
        for branch in objective.teacher.network.head.branches:
            branch.bias.copy_(torch.tensor([0.0, 0, 0, 0, -1e4]))
    void = replace(_batch(), source_labels=torch.full((2, 32, 48), 255, dtype=torch.uint8))
    before = objective.prior.of_source.clone()
    objective.after_step(0, objective(void))
    assert torch.equal(objective.prior.of_source, before)
    assert objective.prior.of_teacher[4] == 0
    assert objective._teach(_batch(1)).target_output.logits.isfinite().all()


def test_ranks_and_checkpoints_remember_the_means():
    objective, twin = _corrected("source"), _corrected("source")
    output, labels = objective._teach(_batch()).target_output, _batch().source_labels
    whole = objective.prior.numbers(output, labels)
    halves = [
        objective.prior.numbers(replace(output, logits=output.logits[part]), labels[part])
        for part in (slice(1), slice(1, 2))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], value)
    objective.prior.update(whole, step=0)
    twin.load_state_dict(objective.state_dict())
    assert torch.equal(twin.prior.of_teacher, objective.prior.of_teacher)
    assert torch.equal(twin.prior.of_source, objective.prior.of_source)
    assert twin.prior.of_teacher.sum().item() == pytest.approx(1)
