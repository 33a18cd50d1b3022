"""Terms that compare the student with its backbone as it was given, which never changes."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.small import PROTOTYPES, shipped, small_segmenter
from tests.support.toy import TINY, toy_pair
from udaseg.data.labels.classes import IGNORE
from udaseg.errors import CheckpointError, RecipeError
from udaseg.methods.build import build_objective
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.class_losses import prototype_loss
from udaseg.methods.contrast.feature_distance import (
    FrozenDistance,
    cosine_distance,
    thing_classes,
)
from udaseg.methods.passes import collect_anchors
from udaseg.methods.start import segmenter_as_given
from udaseg.methods.views import MIXED, SOURCE, CellView, Views, flatten_cells
from udaseg.models.adapters import add_adapters
from udaseg.models.backbones.build import build_backbone
from udaseg.models.frozen import FrozenBackbone, frozen_segmenter
from udaseg.recipe.contrast import FeatureDistance
from udaseg.recipe.schema import Adapters
from udaseg.training.setup import build_setup
from udaseg.training.step import compute_gradients

CLASSES = 5
VIT = [*(word for word in TINY if "backbone" not in word), "model.backbone=timm:test_vit"]
COSINE = "method.feature_distance={kind: cosine, weight: 0.1}"


def _view(seed, *, confidence=None):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 8, 4, 6, generator=generator).requires_grad_()
    labels = torch.randint(0, CLASSES, (2, 4, 6), generator=generator)
    labels[0, 0] = IGNORE
    nothing = torch.zeros_like(labels)  # predictions that are wrong nearly everywhere
    return CellView(features, None, labels, nothing, labels.float(), label_confidence=confidence)


def test_anchors_take_all_labelled_source_cells_and_mixed_ones_that_are_sure():
    spec = replace(PROTOTYPES, anchor="frozen", min_confidence=0.5, weight=2.0)
    term = AnchorContrast(spec, num_classes=CLASSES, channels=8)
    means = F.normalize(torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1)))
    seen = torch.arange(CLASSES) != 3
    term.prototypes.initialise(means, seen)
    confidence = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2))
    views = Views(0, 0.0, 0, {SOURCE: _view(1), MIXED: _view(2, confidence=confidence)})
    expected = 0
    for name in (SOURCE, MIXED):
        rows, labels = flatten_cells(views[name].features), views[name].labels.flatten()
        if name == MIXED:
            labels = labels.masked_fill(confidence.flatten() < 0.5, IGNORE)
        expected += 2 * prototype_loss(rows, labels, means, seen, temperature=spec.temperature)
    assert term(views).item() == pytest.approx(expected.item(), rel=1e-6)


def test_anchors_do_not_change_and_are_in_the_state():
    term = AnchorContrast(PROTOTYPES, num_classes=CLASSES, channels=8)
    term.prototypes.initialise(torch.ones(CLASSES, 8), torch.ones(CLASSES, dtype=torch.bool))
    before = copy.deepcopy(term.state_dict())
    assert before["prototypes.means"].all()
    for step in range(5):
        views = Views(step, 0.0, 0, {SOURCE: _view(step), MIXED: _view(step + 9)})
        term(views).backward()
        term.update(views)
    after = term.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_anchors_are_the_means_of_the_chosen_images(root):
    """One plain pass: each image alone, labels of the nearest pixel, unit features."""
    recipe = shipped("toyland/dacs", VIT)
    source = build_setup(recipe, *toy_pair(root)).batches.source
    network, samples = segmenter_as_given(recipe), source.samples[1:3]
    means, seen = collect_anchors(network, source, samples, 13, torch.device("cpu"), lambda *_: 0)
    rows, labels = [], []
    for sample in samples:
        image, label = source.read(sample)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        features = network(pixels).features
        rows.append(F.normalize(features.flatten(2)[0].T.double()))
        cells = F.interpolate(torch.from_numpy(label)[None, None].float(), features.shape[-2:])
        labels.append(cells.flatten())
    rows, labels = torch.cat(rows), torch.cat(labels)
    assert 1 < seen.sum() < 13
    for number in range(13):
        mine = rows[labels == number]
        assert seen[number] == (len(mine) > 0)
        if len(mine):
            torch.testing.assert_close(means[number], mine.mean(0), atol=1e-6, rtol=0)


def test_the_cosine_distance_is_the_mean_over_cells():
    first, second = (torch.randn(2, 8, 3, 4, dtype=torch.float64) for _ in range(2))
    total = 0
    for image in range(2):
        for row in range(3):
            for column in range(4):
                a, b = first[image, :, row, column], second[image, :, row, column]
                gap = (a - b).abs()
                smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
                total += 0.9 * (1 - a @ b / (a.norm() * b.norm())) + 0.1 * smooth
    assert cosine_distance(first, second).item() == pytest.approx((total / 24).item())
    assert cosine_distance(first, first).item() == pytest.approx(0, abs=1e-12)


def test_the_frozen_network_is_shown_what_the_student_is_shown():
    """With layers that change nothing, a student that is still the frozen network is at 0."""
    student = small_segmenter(classes=CLASSES, projector=False)
    frozen = FrozenBackbone(frozen_segmenter(copy.deepcopy(student.backbone)))
    term = FrozenDistance(FeatureDistance("cosine", weight=1.0), frozen, channels=8)
    term.translate = torch.nn.Identity()
    images = {view: torch.rand(2, 3, 32, 48) for view in (SOURCE, MIXED)}

    def distance(network):
        seen = {view: replace(_view(0), features=network(images[view]).features) for view in images}
        return term(Views(0, 0.0, 0, seen, images=images))

    assert distance(student.eval()).item() == pytest.approx(0, abs=1e-6)
    other = small_segmenter(classes=CLASSES, projector=False, seed=1).eval()
    loss = distance(other)
    assert loss.item() > 0.1
    loss.backward()
    assert any(part.grad.any() for part in other.backbone.parameters())
    assert all(part.grad is None for part in frozen.parameters())


def test_a_frozen_backbone_stays_in_evaluation_mode_and_out_of_the_state():
    body = small_segmenter().backbone
    frozen = FrozenBackbone(frozen_segmenter(body)).train()
    assert not any(part.training for part in frozen.modules())
    state = frozen.state_dict()
    assert list(state) == ["digest"]
    frozen.load_state_dict(state, strict=True)
    other = FrozenBackbone(frozen_segmenter(small_segmenter(seed=1).backbone))
    with pytest.raises(CheckpointError, match=r"frozen backbone has other weights than when"):
        other.load_state_dict(state)


def test_the_base_of_adapters_is_shared_until_it_is_replaced():
    bodies = [build_backbone("timm:test_vit", output_stride=16, weights="random") for _ in range(2)]
    student, given = bodies
    given.load_state_dict(student.state_dict())
    add_adapters(student, Adapters(rank=2))
    student.base_names = frozenset(
        name for name, p in given.named_parameters() if "norm" not in name
    )
    frozen = FrozenBackbone(frozen_segmenter(given))
    images = torch.rand(1, 3, 32, 32)
    before = frozen(images)
    frozen.share(student)
    assert torch.equal(frozen(images), before)
    ours, theirs = dict(given.named_parameters()), dict(student.named_parameters())
    assert {name for name in ours if ours[name] is theirs[name]} == student.base_names
    with torch.no_grad():
        for name, value in student.named_parameters():
            if name not in student.base_names:
                value.add_(1)  # what is trained: adapters and norms
    assert torch.equal(frozen(images), before)
    frozen.unshare()
    with torch.no_grad():
        for value in student.parameters():
            value.zero_()
    assert torch.equal(frozen(images), before)


def test_the_distance_trains_its_layers_and_the_student_alone(root):
    recipe = shipped("toyland/dacs", [*VIT, COSINE])
    setup = build_setup(recipe, *toy_pair(root))
    frozen = setup.objective.regularizers["feature_distance"].frozen
    given = copy.deepcopy(frozen.network.state_dict())
    body = setup.objective.student.backbone.state_dict()
    assert all(torch.equal(given[f"backbone.{name}"], value) for name, value in body.items())
    report = compute_gradients(setup, setup.batches[0])
    assert 0 < report.parts["feature_distance"].item() < 0.4
    for group in setup.optimizer.param_groups:
        group["lr"] = 0.01
    setup.optimizer.step()
    setup.objective.after_step(0, report)
    after = frozen.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in given.items())
    trained = [n for g in setup.optimizer.param_groups for n in g["param_names"]]
    layers = setup.objective.regularizers["feature_distance"].translate
    assert sum(name.startswith("regularizers.feature_distance.") for name in trained) == 6
    assert all(part.grad.any() for part in layers.parameters())


def test_names_of_things_must_be_classes_of_the_source():
    spec = FeatureDistance("thing_class", weight=0.005)
    assert thing_classes(spec, ["road", "car", "train"]) == (1, 2)
    assert thing_classes(replace(spec, classes=("road",)), ["road", "car"]) == (0,)
    with pytest.raises(
        RecipeError,
        match=r"the source has no thing of Cityscapes; name some of sky, tree, or leave",
    ):
        thing_classes(spec, ["sky", "tree"])
    with pytest.raises(
        RecipeError, match=r"feature_distance\.classes: the source has no bus; name"
    ):
        thing_classes(replace(spec, classes=("bus", "car")), ["car", "tree"])


def test_frozen_anchors_are_refused_in_a_stage():
    must = r"method\.stages\[1\]\.objective\.prototypes\.anchor: must be source in a stage; self-tr"
    with pytest.raises(RecipeError, match=must):
        shipped("toyland/spcl", ["method.stages.contrast.objective.prototypes.anchor=frozen"])


def test_the_given_network_draws_no_random_number_of_others():
    recipe = shipped("toyland/dacs", VIT)
    objective = build_objective(recipe, 13)
    state = torch.get_rng_state()
    given = segmenter_as_given(recipe).backbone.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    body = objective.student.backbone.state_dict()
    assert all(torch.equal(given[name], value) for name, value in body.items())
