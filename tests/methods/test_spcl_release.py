"""The contrast of `spcl` and `spcl_release` over several steps, against naive loops."""

import pytest
import torch

from tests.support.small import shipped
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.views import PSEUDO_LABELLED, SOURCE, CellView, Views
from udaseg.recipe.methods import PrototypeAlignment, Staged

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
