"""Activation checkpointing: bit-identical results with less memory."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from tests.methods.test_self_training import _batch
from tests.support.injections import (
    everything,
    inject,
    plain_objective,
    plainly_trained,
    rich_objective,
    tiny_fit,
)
from tests.support.injections import trained as train
from tests.support.small import small_segmenter
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.models.backbones.build import build_backbone
from udaseg.models.checkpointing import split_into_segments
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus
from udaseg.models.projector import Projector
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.training.guards import Guard


def network(name="mobilenet_v2", *, recompute=False, batch_norm="train", projector=False):
    torch.manual_seed(0)
    body = build_backbone(name, output_stride=16, weights="random")
    segmenter = Segmenter(
        body,
        DeepLabV3Plus(body.channels, 5, (2, 4), 16),
        batch_norm=batch_norm,
        projector=Projector(body.channels[-1], 8) if projector else None,
    )
    segmenter.recompute = recompute
    return segmenter


def step(segmenter, size=(64, 96), embed=False):
    """Return the loss, gradients and state after one forward and backward pass."""
    torch.manual_seed(1)
    outputs = segmenter(torch.rand(2, 3, *size), embed=embed)
    total = outputs.logits.square().mean() + outputs.features.mean()
    if embed:
        total = total + outputs.embeddings[:, 0].mean()
    total.backward()
    grads = {f"grad.{name}": part.grad for name, part in segmenter.named_parameters()}
    return {"loss": total.detach(), **grads, **segmenter.state_dict()}


def unequal(one, other):
    assert one.keys() == other.keys()
    return [
        name
        for name in one
        if (one[name] is None) != (other[name] is None)
        or (one[name] is not None and not torch.equal(one[name], other[name]))
    ]


@pytest.mark.parametrize("batch_norm", ["train", "affine_frozen", "frozen"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_losses_gradients_and_statistics_are_the_same_bits(name, batch_norm):
    plain = step(network(name, batch_norm=batch_norm, projector=True), embed=True)
    again = step(network(name, recompute=True, batch_norm=batch_norm, projector=True), embed=True)
    assert unequal(plain, again) == []
    counters = [value for key, value in again.items() if key.endswith("num_batches_tracked")]
    assert {int(value) for value in counters} <= {0, 1}


def test_a_timm_network_is_the_same_too():
    plain = step(network("efficientnet_lite0"), size=(64, 64))
    again = step(network("efficientnet_lite0", recompute=True), size=(64, 64))
    assert unequal(plain, again) == []


def test_batch_norms_that_were_moved_twice_would_be_noticed(monkeypatch):
    """The test can fail: without the guard the second pass updates the statistics again."""
    plain = step(network())
    monkeypatch.setattr("udaseg.models.checkpointing.frozen_statistics", contextlib.nullcontext)
    moved = unequal(plain, step(network(recompute=True)))
    assert any(name.endswith("running_mean") for name in moved)


@pytest.mark.parametrize("kind", ["source_only", "self_training", "adversarial"])
def test_whole_runs_end_in_the_same_bits(kind):
    def objective():
        torch.manual_seed(0)
        if kind == "source_only":
            return plain_objective()
        if kind == "self_training":
            return rich_objective()
        student = small_segmenter(projector=False)
        spec = AdversarialSpec("adversarial", "softmax", 0.1, 1.0, discriminator_lr=1e-4)
        return Adversarial(student, Discriminator(5, 4), spec).train()

    ends = []
    for recompute in (False, True):
        run = tiny_fit(objective=objective(), steps=4)
        run.objective.student.recompute = recompute
        if kind == "adversarial":
            run.batches.make = _large
        train(run)
        ends.append(everything(run))
    assert unequal(*ends) == []


def _large(number, seed):
    return _batch(number, seed, size=(64, 64))


def test_a_step_that_is_not_finite_is_undone_all_the_same():
    expected = tiny_fit(steps=4)
    plainly_trained(expected, without={2})
    run = tiny_fit(steps=4)
    run.objective.student.recompute = True
    injected = inject(run, "gradient", 2)
    guard = Guard(run)
    train(run, guard=guard)
    assert injected
    assert guard.counts == {"dropped_steps": 1}
    assert unequal(everything(run), everything(expected)) == []


def test_less_is_kept_for_the_backward_pass():
    kept = {}
    for recompute in (False, True):
        segmenter, sizes = network("resnet18", recompute=recompute), {}

        def pack(value, sizes=sizes):
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out = segmenter(torch.rand(2, 3, 96, 96))
        weights = {part.untyped_storage().data_ptr() for part in segmenter.parameters()}
        kept[recompute] = sum(size for pointer, size in sizes.items() if pointer not in weights)
        del out
    # the checkpoints keep the inputs of ten blocks in their closures
    assert kept[True] < kept[False] / 5


def test_only_training_passes_are_cut():
    segmenter = network(recompute=True)
    calls = []
    segmenter.backbone.forward_checkpointed = lambda images: calls.append(1)
    with torch.no_grad():
        segmenter(torch.zeros(1, 3, 32, 32))
    segmenter.eval()
    segmenter(torch.zeros(1, 3, 32, 32))
    assert calls == []


def test_segments_are_blocks_in_order_and_single_layers_go_together():
    block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(4, 4, 1)))
    stages = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), block, nn.ReLU())
    segments = split_into_segments(stages)
    assert [len(list(part.children())) for part in segments] == [5]
    resnet = network("resnet18").backbone
    assert len(split_into_segments(resnet.low)) == 3
    assert len(split_into_segments(resnet.rest)) == 6
    flat = [
        leaf
        for part in split_into_segments(resnet.rest)
        for leaf in part.modules()
        if not [*leaf.children()]
    ]
    assert flat == [leaf for leaf in resnet.rest.modules() if not [*leaf.children()]]


def test_a_copy_of_the_student_keeps_the_wish_and_has_tensors_of_its_own():
    segmenter = network(recompute=True)
    other = copy.deepcopy(segmenter)
    step(segmenter)
    assert other.recompute
    assert all(part.grad is None for part in other.parameters())


def test_a_head_of_few_layers_works_without_batch_norm():
    torch.manual_seed(0)
    body = build_backbone("resnet18", output_stride=32, weights="random")
    segmenter = Segmenter(body, DeepLabV2(body.channels, 3, (1,)), batch_norm="frozen")
    segmenter.recompute = True
    assert isinstance(SourceOnly(segmenter).train().student, Segmenter)
    assert torch.isfinite(step(segmenter)["loss"])
