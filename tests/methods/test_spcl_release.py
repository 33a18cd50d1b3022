"""The losses of `spcl_release`, and the contrast of both over several steps, written out."""

import functools

import pytest
import torch
import torch.nn.functional as F

from tests.support.small import shipped
from udaseg.data.loading.batches import Batch
from udaseg.distributed import RankSums
from udaseg.methods.build import build_objective
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.views import PSEUDO_LABELLED, SOURCE, CellView, Views
from udaseg.recipe.methods import PrototypeAlignment, Staged
from udaseg.recipe.stages import stages_of

CLASSES, CHANNELS = 4, 6


def _view(seed, absent):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, CHANNELS, 3, 5, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 3, 5), generator=generator)
    labels[labels == absent] = 255
    guesses = torch.randint(0, CLASSES, (2, 3, 5), generator=generator)
    predictions = torch.where(torch.rand(2, 3, 5, generator=generator) < 0.5, labels, guesses)
    return CellView(features.requires_grad_(), None, labels, predictions, torch.ones(2, 3, 5))


def _cells(view, trusted):
    """Yield the float64 unit feature and the label of each counted cell."""
    for image in range(2):
        for row in range(3):
            for column in range(5):
                label = int(view.labels[image, row, column])
                right = label == int(view.predictions[image, row, column])
                if label != 255 and (right or not trusted):
                    vector = view.features[image, :, row, column].detach().double()
                    yield vector / vector.norm(), label


def _moved(means, view, spec):
    groups = [[q for q, label in _cells(view, True) if label == k] for k in range(CLASSES)]
    new = []
    for old, group in zip(means, groups, strict=True):
        batch = torch.stack(group).mean(0) if group else torch.zeros(CHANNELS).double()
        moved = spec.momentum * old + (1 - spec.momentum) * batch
        if spec.normalise:
            moved = moved / moved.norm()
        new.append(old if not group and spec.absent == "keep" else moved)
    return new


def _loss(view, means, spec, trusted):
    terms = []
    for query, label in _cells(view, trusted):
        scores = torch.stack([query @ mean for mean in means]) / spec.temperature
        terms.append(torch.logsumexp(scores, 0) - scores[label])
    return torch.stack(terms).mean()


@pytest.mark.parametrize("method", ["spcl", "spcl_release"])
def test_losses_and_prototypes_follow_the_formulas_over_several_steps(method):
    recipe = shipped(f"gta5_cityscapes/{method}").method
    assert isinstance(recipe, Staged)
    alignment = recipe.stages[1].objective
    assert isinstance(alignment, PrototypeAlignment)
    spec = alignment.prototypes
    contrast = PrototypeContrast(
        spec, num_classes=CLASSES, channels=CHANNELS, second_view=PSEUDO_LABELLED
    )
    start = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(9))
    start = start / start.norm(dim=1, keepdim=True)
    contrast.prototypes.initialise(start, torch.ones(CLASSES, dtype=torch.bool))
    means = list(start.double())
    for step in range(5):
        absent = step % CLASSES if step else None
        views = Views(
            step=step,
            progress=0.0,
            seed=step,
            by_name={SOURCE: _view(step, absent), PSEUDO_LABELLED: _view(100 + step, None)},
        )
        means = _moved(means, views[SOURCE], spec)
        expected = _loss(views[SOURCE], means, spec, True)
        expected = spec.weight * (expected + _loss(views[PSEUDO_LABELLED], means, spec, False))
        assert contrast(views).item() == pytest.approx(expected.item(), abs=1e-5)
        contrast.update(views)
        assert torch.allclose(contrast.prototypes.means.double(), torch.stack(means), atol=1e-5)


RELEASE = [
    f"{key}={value}"
    for key, value in {
        "model.backbone": "resnet18",
        "model.weights": "random",
        "source.crop": "[64, 96]",
        "target.crop": "[64, 96]",
        "steps": 10,
    }.items()
]


@functools.cache
def _losses(stage_number, *overrides):
    """Return the losses of a stage on a fixed batch, and what the network saw and gave."""
    recipe = shipped("gta5_cityscapes/spcl_release", [*RELEASE, *overrides])
    stage = stages_of(recipe)[stage_number]
    objective = build_objective(recipe, CLASSES, stage=stage).train()
    with torch.no_grad():
        for weight in objective.student.head.parameters():
            weight.mul_(30)  # logits that differ from cell to cell
    if stage_number == 1:
        _start_prototypes(objective)
    seen = []
    objective.student.register_forward_hook(
        lambda _, given, output: seen.append((given[0].detach(), output))
    )
    reports = list(objective.passes(_fixed_batch(), RankSums()))
    return [report.parts for report in reports], seen, objective


def _start_prototypes(objective):
    prototypes = objective.contrast.prototypes
    shape = prototypes.means.shape
    start = torch.randn(*shape, generator=torch.Generator().manual_seed(9))
    prototypes.initialise(start / start.norm(dim=1, keepdim=True), torch.ones(shape[0]).bool())


def _fixed_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 2, 3, 64, 96), generator=generator).byte()
    labels = torch.randint(0, CLASSES, (2, 2, 8, 12), generator=generator)
    labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3).byte()
    labels[:, :, :9] = 255
    return Batch(3, 0.3, 5, images[0], labels[0], images[1], labels[1])


def _pixel_loss(output, labels, temperature):
    wide = F.interpolate(output.logits, (64, 96), mode="bilinear", align_corners=True)
    return F.cross_entropy(wide / temperature, labels.long(), ignore_index=255)


def _bce(discriminator, output, temperature, domain):
    wide = F.interpolate(output.logits, (64, 96), mode="bilinear", align_corners=True)
    verdict = discriminator((wide / temperature).softmax(1))
    return F.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, domain))


def _cell_labels(labels):
    return labels[:, ::8, ::8].long()


def _contrast(output, labels, means):
    units = F.normalize(output.features, dim=1)
    scores = torch.einsum("bchw,kc->bkhw", units, means) / 100
    return F.cross_entropy(scores, labels, ignore_index=255)


def test_losses_of_the_first_stage_on_a_fixed_batch():
    (first, second), [(_, source), (_, target)], objective = _losses(0)
    judge = objective.discriminator
    expected = _pixel_loss(source, _fixed_batch().source_labels, 1.8)
    assert first["source"].item() == pytest.approx(expected.item(), rel=1e-5)
    half = _bce(judge, source, 1.8, 0.0) / 2
    assert first["discriminator"].item() == pytest.approx(half.item(), rel=1e-5)
    guilt = 0.001 * _bce(judge, target, 1.0, 0.0)
    assert second["adversarial"].item() == pytest.approx(guilt.item(), rel=1e-5)
    half = _bce(judge, target, 1.0, 1.0) / 2
    assert second["discriminator"].item() == pytest.approx(half.item(), rel=1e-5)


def test_losses_of_the_second_stage_on_a_fixed_batch():
    (first, second), [(_, source), (_, target)], objective = _losses(1)
    batch = _fixed_batch()
    expected = _pixel_loss(source, batch.source_labels, 1.8)
    assert first["source"].item() == pytest.approx(expected.item(), rel=1e-5)
    labels = _cell_labels(batch.source_labels)
    right = labels.masked_fill(source.logits.argmax(1) != labels, 255)
    units, before = F.normalize(source.features, dim=1), objective.contrast.prototypes.means
    members = F.one_hot(right.clamp_max(CLASSES), CLASSES + 1)[..., :CLASSES].float()
    sums = torch.einsum("bchw,bhwk->kc", units, members)
    means = 0.1 * before + 0.9 * sums / members.sum((0, 1, 2)).clamp_min(1)[:, None]
    expected = _contrast(source, right, means)
    assert first["prototypes"].item() == pytest.approx(expected.item(), rel=1e-6)
    expected = _contrast(target, _cell_labels(batch.pseudo_labels), means)
    assert second["prototypes"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_the_third_stage_on_a_fixed_batch():
    (only,), [(_, target)], _ = _losses(2)
    expected = _pixel_loss(target, _fixed_batch().pseudo_labels, 1.0)
    assert only["target"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_colours_of_the_source_are_changed_and_those_of_the_target_in_the_last_stage(number):
    _, seen, _ = _losses(number)
    batch = _fixed_batch()
    plain = [batch.source_images, batch.target_images][2 - len(seen) :]
    changed = [
        not torch.allclose(images, stored.float() / 255, atol=1e-3)
        for (images, _), stored in zip(seen, plain, strict=True)
    ]
    assert changed == ([True] if number == 2 else [True, False])


@pytest.mark.parametrize(
    ("number", "override", "part"),
    [
        (0, "model.align_corners=false", "source"),
        (0, "method.stages.warm_up.objective.target_temperature=null", "adversarial"),
        (0, "method.stages.warm_up.objective.temperature=1", "source"),
        (1, "model.align_corners=false", "source"),
        (1, "method.stages.contrast.objective.temperature=1", "source"),
        (1, "method.stages.contrast.objective.prototypes.temperature=0.1", "prototypes"),
        (1, "method.stages.contrast.objective.prototypes.momentum=0.999", "prototypes"),
        (1, "method.stages.contrast.objective.prototypes.normalise=true", "prototypes"),
        (2, "model.align_corners=false", "target"),
        (2, "method.stages.self_distillation.target_jitter=null", "target"),
    ],
)
def test_each_field_of_the_release_changes_a_loss(number, override, part):
    released, other = (
        sum(parts[part].item() for parts in _losses(number, *words)[0] if part in parts)
        for words in ([], [override])
    )
    assert other != pytest.approx(released, rel=2e-6)


def test_the_contrast_can_be_that_of_one_domain():
    both, seen, _ = _losses(1)
    key = "method.stages.contrast.objective.contrast_on"
    source, seen_of_source, _ = _losses(1, f"{key}=source")
    assert [set(parts) for parts in source] == [{"source", "prototypes"}]
    assert source[0]["prototypes"].item() == both[0]["prototypes"].item()
    assert len(seen_of_source) == 1 < len(seen)
    target, *_ = _losses(1, f"{key}=target")
    assert [set(parts) for parts in target] == [{"source"}, {"prototypes"}]
    assert target[1]["prototypes"].item() == both[1]["prototypes"].item()
