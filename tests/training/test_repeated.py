"""Tensors that the releases list several times in SGD's group, against the loop that they run."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from tests.support.small import shipped
from udaseg.errors import RecipeError
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.segmenter import Segmenter
from udaseg.training.optimizer import LateSGD, build_optimizer, set_learning_rate

DACS = "gta5_cityscapes/dacs"


def _layer(inputs, outputs):
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, downsample=shortcut), BasicBlock(outputs, 4))


def _trained(*overrides):
    """Return a small ResNet, and the optimiser of DACS for it."""
    torch.manual_seed(0)
    low = nn.Sequential(nn.Conv2d(3, 4, 7, 4), nn.BatchNorm2d(4), nn.ReLU(), _layer(4, 4))
    rest = nn.Sequential(_layer(4, 4))
    backbone = SequentialBackbone(low, rest, ends=(0, 1), channels=(4, 4), strides=(4, 4))
    objective = SourceOnly(Segmenter(backbone, DeepLabV2((4,), 3, (1, 2)), batch_norm="frozen"))
    return objective, build_optimizer(shipped(DACS, overrides), objective)


def _times_listed(backbone, parameter):
    """Count as the releases do: for each module below the stem or a layer, its parameters."""
    stem_and_layers = [*backbone.low, *backbone.rest]
    return sum(
        any(each is parameter for each in module.parameters())
        for part in stem_and_layers
        for module in part.modules()
    )


def test_tensors_move_as_in_a_loop_over_a_list_that_repeats_them():
    objective, optimizer = _trained("optimizer.repeated=released")
    rates = {"backbone": 2.5e-4, "head": 2.5e-3}
    student = dict(objective.student.named_parameters())
    weights = {name: part for name, part in student.items() if part.requires_grad}
    backbone = objective.student.backbone
    times = {
        name: _times_listed(backbone, part) if name.startswith("backbone.") else 1
        for name, part in weights.items()
    }
    assert set(times.values()) == {1, 3, 4}
    expected = {name: part.detach().double() for name, part in weights.items()}
    momenta = {}
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        set_learning_rate(optimizer, 0.5)
        for name, part in weights.items():
            part.grad = torch.randn(part.shape, generator=generator)
            rate = 0.5 * rates[name.split(".")[0]]
            for _ in range(times[name]):
                change = part.grad.double() + 5e-4 * expected[name]
                momenta[name] = 0.9 * momenta[name] + change if name in momenta else change
                expected[name] = expected[name] - rate * momenta[name]
        optimizer.step()
        for name, part in weights.items():
            assert torch.allclose(part.double(), expected[name], atol=2e-7, rtol=1e-6), (step, name)


@pytest.mark.parametrize(("listed", "kept", "rate"), [(3, 0.729, 8.13), (4, 0.6561, 13.756)])
def test_one_gradient_moves_as_far_in_all_as_one_step_with_another_rate(listed, kept, rate):
    # of the momentum that the first step leaves, each later step keeps m^n
    value, momentum, moved = 0.0, 0.0, []
    for step in range(200):
        before = value
        for _ in range(listed):
            momentum = 0.9 * momentum + (step == 0)
            value += momentum
        moved.append(value - before)
    assert moved[2] / moved[1] == pytest.approx(kept)
    assert value == pytest.approx(listed / (1 - 0.9))
    assert rate / (1 - kept) == pytest.approx(listed / (1 - 0.9))


def test_the_state_is_saved_and_loaded():
    (_, optimizer), (_, other) = [_trained("optimizer.repeated=released") for _ in range(2)]
    for part in (part for group in optimizer.param_groups for part in group["params"]):
        part.grad = torch.ones_like(part)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()  # changes the momentum alone
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["times"] for group in other.param_groups] == [1, 3, 4, 1]
    names = [group["name"] for group in other.param_groups]
    assert names == ["backbone", "backbone_3", "backbone_4", "head"]
    for each in (optimizer, other):
        for part in (part for group in each.param_groups for part in group["params"]):
            part.grad = torch.ones_like(part)
        set_learning_rate(each, 1.0)
        each.step()
    pairs = zip(optimizer.param_groups, other.param_groups, strict=True)
    for one, two in pairs:
        for first, second in zip(one["params"], two["params"], strict=True):
            assert torch.equal(first, second)


def test_by_default_each_tensor_takes_one_step():
    _, optimizer = _trained()
    assert type(optimizer) is LateSGD
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]


@pytest.mark.parametrize("other", ["optimizer.kind=adamw", "model.backbone=mobilenet_v2"])
def test_only_sgd_on_a_resnet_repeats(other):
    with pytest.raises(RecipeError, match=r"optimizer\.repeated: must be once: the releases list"):
        shipped(DACS, ["optimizer.repeated=released", other])
