"""Batch-norm statistics of the target: the averages over batches, and that nothing else changes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.methods.test_host import Reads
from tests.support.small import shipped, small_segmenter
from tests.support.toy import TINY, toy_pair, toy_root
from udaseg.data.files.images import read_image
from udaseg.errors import RecipeError
from udaseg.methods.target_statistics import adapt_batch_norms
from udaseg.methods.teacher import Teacher
from udaseg.recipe.rules import recipe_problems
from udaseg.training.setup import build_crop_source


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    dataset = toy_pair(toy_root(tmp_path_factory.mktemp("data")))[1]
    return build_crop_source(shipped("toyland/adabn", TINY).target, dataset, labelled=False)


def _adapt(networks, target, batch=2):
    seen = []
    adapt_batch_norms(
        *(networks, target, target.samples),
        batch_size=batch,
        device=torch.device("cpu"),
        on_progress=lambda done, of: seen.append((done, of)),
    )
    return seen


def _naive(network, target, batch):
    """Average the mean and variance of the first norm's input over batches, with loops."""
    images = [read_image(target.dataset.image_path(sample)) for sample in target.samples]
    means, variances = [], []
    for begin in range(0, len(images), batch):
        rows = [torch.tensor(image).permute(2, 0, 1) / 255 for image in images[begin:][:batch]]
        values = network.backbone.low[0]((torch.stack(rows) - network.mean) / network.std)
        for channel in range(values.shape[1]):
            flat = values[:, channel].flatten().double()
            mean = sum(flat.tolist()) / len(flat)
            means.append(mean)
            variances.append(sum((value - mean) ** 2 for value in flat.tolist()) / (len(flat) - 1))
    shape = (-1, values.shape[1])
    return torch.tensor(means).view(shape).mean(0), torch.tensor(variances).view(shape).mean(0)


def test_statistics_are_the_averages_over_batches_of_whole_images(target):
    network = small_segmenter()
    with torch.no_grad():
        mean, variance = _naive(network, target, 2)
    seen = _adapt([network], target)
    norm = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    torch.testing.assert_close(norm.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance.float(), rtol=1e-4, atol=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_device_is_not_waited_for_and_the_norms_get_their_momentum_back(target):
    network = small_segmenter()
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.momentum = 0.1 * number
    with Reads() as reads:
        _adapt([network], target)
    assert reads.found == []
    assert [norm.momentum for norm in norms] == [0.1 * number for number in range(len(norms))]
    assert [norm.num_batches_tracked.item() for norm in norms] == [3] * len(norms)


def test_no_weight_changes_and_it_can_be_done_twice(target):
    network = small_segmenter()
    before = {name: part.clone() for name, part in network.named_parameters()}
    _adapt([network], target)
    once = copy.deepcopy(network.state_dict())
    for name, part in network.named_parameters():
        assert torch.equal(part, before[name])
    _adapt([network], target)
    for name, value in network.state_dict().items():
        assert torch.equal(value, once[name]), name


def test_a_teacher_that_normalises_by_the_batch_gets_them_too_and_goes_on_so(target):
    teacher = Teacher(small_segmenter(), momentum=0.9, batch_statistics=True)
    plain = small_segmenter()
    _adapt([plain, teacher.network], target)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, teacher.network.state_dict()[name]), name
    teacher.train()
    norms = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.training and not norm.track_running_stats for norm in norms)


def test_images_of_several_sizes_go_through_one_size_at_a_time(target):
    class Sizes:
        samples = target.samples

        def read(self, sample):
            image, labels = target.read(sample)
            height = 48 if sample is self.samples[2] else 64
            return image[:height], labels

    network = small_segmenter()
    assert _adapt([network], Sizes()) == [(2, 5), (3, 5), (5, 5)]


@pytest.mark.parametrize("override", ["model.batch_norm=frozen", "method.target_statistics=-1"])
def test_frozen_norms_and_fewer_than_no_images_are_refused(override):
    with pytest.raises(RecipeError, match=r"method\.target_statistics"):
        shipped("toyland/adabn", [override])


def test_a_stage_cannot_have_them_but_the_whole_run_can():
    spcl = shipped("toyland/spcl", ["method.target_statistics=5"])
    assert recipe_problems(spcl) == []
    first, *others = spcl.method.stages
    wrong = replace(first, objective=replace(first.objective, target_statistics=3))
    problems = recipe_problems(replace(spcl, method=replace(spcl.method, stages=(wrong, *others))))
    assert [key for key, _ in problems] == ["method.stages[0].objective.target_statistics"]
