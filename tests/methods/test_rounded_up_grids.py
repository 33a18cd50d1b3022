"""With pooling that rounds up, 32x48 images have 5x7 cells of 8 px; methods use all of them."""

import dataclasses

import pytest
import torch

from tests.methods.test_self_training import CLASSES, _batch
from udaseg.methods.build import build_objective
from udaseg.methods.views import CUTMIX, PSEUDO_LABELLED
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import load
from udaseg.recipe.stages import stages_of

WORDS = ["model.backbone=resnet18", "model.output_stride=8", "model.ceil_pool=true"]
WORDS += ["model.head=deeplab_v2"]


def test_no_square_reaches_the_last_row_and_column():
    """As in RCCR's release, where squares lie on 64x64 of the 65x65 cells."""
    words = [*WORDS, "method.regional.min_confidence=0", "method.regional.cells_per_view=70"]
    recipe = load(find_recipe("toyland/rccr"), overrides=words)
    report = build_objective(recipe, CLASSES)(_batch())
    report.total.backward()
    square, labels = report.views[CUTMIX].square, report.views[CUTMIX].labels
    assert square.shape == labels.shape == (2, 5, 7)
    assert square.any()
    assert not square[:, -1].any()
    assert not square[:, :, -1].any()
    assert report.parts["regional"] > 0


def test_pseudo_labels_lie_on_the_cells_of_the_features():
    recipe = load(find_recipe("toyland/spcl"), overrides=WORDS)
    stage = next(s for s in stages_of(recipe) if s.objective.kind == "prototype_alignment")
    batch = _batch()
    batch = dataclasses.replace(batch, pseudo_labels=batch.source_labels.flip(1))
    report = build_objective(recipe, CLASSES, stage=stage)(batch)
    assert report.views[PSEUDO_LABELLED].labels.shape == (2, 5, 7)
    assert torch.isfinite(report.total)


@pytest.mark.parametrize("objective", ["advent", "dacs", "fda", "minent", "sepico"])
def test_other_methods_run_on_it(objective):
    recipe = load(find_recipe(f"toyland/{objective}"), overrides=WORDS)
    assert torch.isfinite(build_objective(recipe, CLASSES)(_batch(size=(64, 96))).total)
