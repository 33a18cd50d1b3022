"""Counters of batch norms: counted in one operator, with the values of torch's own counting."""

import copy

import pytest
import torch
from torch import nn

from tests.support.operators import OperatorCount
from tests.support.small import small_segmenter
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus
from udaseg.models.segmenter import Segmenter, evaluation_mode


def both_ways(network):
    """Return the network, and a copy whose norms count one by one."""
    one_by_one = copy.deepcopy(network)
    one_by_one._norms = []
    return network, one_by_one


def passes(network, size=32):
    """Run passes in training mode, in evaluation mode, and without a gradient."""
    torch.manual_seed(0)
    network.zero_grad()
    images = torch.rand(2, 3, size, size)
    for _ in range(2):
        network(images).logits.square().mean().backward()
    with evaluation_mode(network):
        network(images)
    with torch.no_grad():
        network(images)
    grads = {f"grad.{name}": part.grad for name, part in network.named_parameters()}
    return {**network.state_dict(), **grads}


def assert_same_counts(network, count):
    together, one_by_one = map(passes, both_ways(network))
    assert together.keys() == one_by_one.keys()
    for name, value in together.items():
        other = one_by_one[name]
        assert value is other is None or torch.equal(value, other), name
    counts = {int(part) for name, part in together.items() if name.endswith("tracked")}
    assert counts == count


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_norm", ["train", "affine_frozen", "frozen"])
def test_counts_are_those_of_torch(batch_norm, recompute):
    network = small_segmenter(batch_norm=batch_norm, head_norm=True, projector=False)
    network.recompute = recompute
    assert_same_counts(network, {0, 3} if batch_norm == "frozen" else {3})


@pytest.mark.parametrize("recompute", [False, True])
def test_a_norm_without_momentum_reads_its_counter(recompute):
    network = small_segmenter(head_norm=True, projector=False)
    network.head.norm.momentum = None
    network.recompute = recompute
    assert_same_counts(network, {3})


def test_the_norms_of_timm_count_too():
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_lite0", output_stride=16, weights="random")
    head = DeepLabV3Plus(backbone.channels, 3, (2,), 8)
    assert_same_counts(Segmenter(backbone, head), {3})


def test_a_norm_without_statistics_has_no_counter():
    network = small_segmenter(head_norm=True, projector=False)
    network.head.norm = nn.BatchNorm2d(8, track_running_stats=False)
    network = Segmenter(network.backbone, network.head)
    assert_same_counts(network, {3})
    network.head.norm.track_running_stats = True  # as adapting the statistics does
    assert_same_counts(network, {6})


def test_all_counters_take_one_operator():
    counted = []
    for network in both_ways(small_segmenter(head_norm=True)):
        with OperatorCount() as operators:
            network(torch.rand(1, 3, 32, 32))
        counted.append(operators.counts)
    together, one_by_one = counted
    assert together["aten._foreach_add_.Scalar"] == 1
    assert one_by_one["aten.add_.Tensor"] - together["aten.add_.Tensor"] == 3
    assert one_by_one.total() - together.total() == 2


def test_counters_are_back_after_a_pass_that_fails():
    network = small_segmenter()
    counters = [part for name, part in network.named_buffers() if name.endswith("tracked")]
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 4, 32, 32))
    after = [part for name, part in network.named_buffers() if name.endswith("tracked")]
    assert [id(part) for part in after] == [id(part) for part in counters]
