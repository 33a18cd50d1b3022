"""Masked image consistency: what is hidden, and what the student learns from the rest."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.methods.test_self_training import _batch, _objective
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.errors import RecipeError
from udaseg.methods import masking as masking_module
from udaseg.methods.augmentation import generator_for
from udaseg.methods.build import build_objective
from udaseg.methods.masking import hidden_blocks, masked_input
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.pixels import to_unit_range
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.methods import Masking

BLOCKS = Masking(kind="block", size=8)


def masking(objective, **changes):
    objective.spec = replace(objective.spec, masking=replace(BLOCKS, **changes))
    return objective


def test_blocks_of_all_channels_are_0_once_normalised_and_the_rest_is_as_before(monkeypatch):
    objective = masking(_objective(), size=8)
    seen = []
    monkeypatch.setattr(objective.student, "mean", torch.tensor([0.1, 0.4, 0.7]).view(1, 3, 1, 1))
    objective.student.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    objective(_batch())
    assert len(seen) == 3, "source, mixed and masked images"
    hidden = (seen[2] == 0).all(1)
    for image in hidden:
        cells = image.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).float().mean(2)
        assert set(cells.flatten().tolist()) == {0.0, 1.0}, "whole blocks, and not all of them"
    generator = generator_for(_batch().seed, "masked")
    whole = objective._augment(to_unit_range(_batch().target_images), generator)
    whole = (whole - objective.student.mean) / objective.student.std
    shown = ~hidden[:, None].expand_as(whole)
    assert torch.equal(seen[2][shown], whole[shown])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_the_ratio_is_the_share_of_blocks_that_is_hidden(ratio):
    mask = hidden_blocks(10, (200, 200), 2, ratio, torch.Generator().manual_seed(0))
    assert mask.float().mean().item() == pytest.approx(ratio, abs=0.01)
    assert torch.equal(mask, hidden_blocks(10, (200, 200), 2, ratio, torch.manual_seed(0)))


def _plain_cross_entropy(objective, batch, weight):
    """Return the loss of augmented images that are not masked, on the teacher's labels."""
    context = objective._teach(batch)
    images = objective._augment(context.target, generator_for(batch.seed, "masked"))
    logits = nn.functional.interpolate(
        objective.student(images).logits, images.shape[-2:], mode="bilinear"
    )
    losses = nn.functional.cross_entropy(logits, context.target_labels.long(), reduction="none")
    return (weight * losses).mean()


@pytest.mark.parametrize("rows", [(0, 0), (3, 5)])
def test_nothing_hidden_is_cross_entropy_with_the_teachers_labels_and_weights(rows):
    limit, batch = 0.204, _batch()
    objective = masking(_objective(confidence=limit, ignore_rows=rows), ratio=0.0, weight=0.5)
    report = objective(batch)
    share = (objective._teach(batch).target_confidence >= limit).float().mean()
    weight = share.expand(2, 32, 48).clone()
    weight[:, : rows[0]] = weight[:, 32 - rows[1] :] = 0
    assert 0.1 < share < 0.9
    expected = 0.5 * _plain_cross_entropy(objective, batch, weight)
    torch.testing.assert_close(report.parts["masked"], expected)
    parts = sum(report.parts.values())
    assert list(report.parts) == ["source", "mixed", "masked"] and report.total == parts


def test_the_student_learns_from_it_and_the_teacher_does_not():
    objective = masking(_objective())
    objective(_batch()).parts["masked"].backward()
    assert objective.student.head.branches[0].weight.grad.abs().sum() > 0
    assert all(part.grad is None for part in objective.teacher.parameters())


def test_the_weight_rises_from_0_in_the_share_of_the_ramp():
    objective = masking(_objective(), weight=2.0, ramp=0.4)
    losses = [
        objective(replace(_batch(), progress=progress)).parts["masked"].item()
        for progress in (0.0, 0.1, 0.4, 0.9)
    ]
    assert losses[2] > 0
    assert losses == pytest.approx([0, losses[2] / 4, losses[2], losses[2]])


def test_a_weight_of_null_is_that_of_the_network():
    recipe = shipped("toyland/foundation", TINY)
    assert recipe.method.masking.weight is None
    assert build_objective(recipe, 5).spec.masking is None
    weighted = shipped("toyland/foundation", [*TINY, "method.masking.weight=0.5"])
    assert build_objective(weighted, 5).spec.masking.weight == 0.5
    vit = replace(recipe, model=replace(recipe.model, backbone="timm:test_vit", head="linear"))
    assert build_objective(vit, 5).spec.masking.weight == 1


def test_masked_images_do_not_change_the_running_statistics():
    plain, masked = _objective(), masking(_objective())
    fresh = {name: value.clone() for name, value in plain.student.named_buffers()}
    for objective in (plain, masked):
        objective(_batch()).total.backward()
    expected = dict(plain.student.named_buffers())
    for name, value in masked.student.named_buffers():
        assert torch.equal(value, expected[name]), name
        assert "running" not in name or not torch.equal(value, fresh[name])


def test_other_losses_are_the_same_with_and_without_it():
    plain = _objective()(_batch()).parts
    masked = masking(_objective())(_batch()).parts
    assert {name: masked[name] for name in plain} == plain


def test_ranks_hide_what_one_process_hides(monkeypatch):
    whole = hidden_blocks(4, (32, 48), 8, 0.5, torch.Generator().manual_seed(3))
    for rank in range(2):
        part = slice(2 * rank, 2 * rank + 2)
        monkeypatch.setattr(masking_module, "slice_for_rank", lambda count, p=part: (2 * count, p))
        own = hidden_blocks(2, (32, 48), 8, 0.5, torch.Generator().manual_seed(3))
        assert torch.equal(own, whole[part])


def _vit(patch=16):
    torch.manual_seed(0)
    body = build_backbone("timm:test_vit", output_stride=patch, weights="random")
    return Segmenter(body, DeepLabV2(body.channels, 5, (1, 2)))


@pytest.mark.parametrize("size", [(48, 64), (40, 57)])
def test_hidden_tokens_are_that_of_an_empty_patch_and_others_stay(size):
    network, tokens = _vit(), []
    objective = masking(_objective(), kind="token", ratio=0.5)
    objective.student = network.train()
    network.backbone.network.patch_embed.register_forward_hook(lambda *of: tokens.append(of[2]))
    batch = _batch(size=size)
    context = replace(objective._teach(batch), student=network)
    network(masked_input(context, objective.spec.masking).images)
    network(objective._augment(context.target, generator_for(batch.seed, "masked")))
    masked, whole = tokens
    hidden = (masked == network.backbone.network.patch_embed.proj.bias).all(-1)
    assert 0.1 < hidden.float().mean() < 0.9
    assert masked.shape == whole.shape == (2, 3, 4, 64)
    torch.testing.assert_close(masked[~hidden], whole[~hidden])
    assert (masked[hidden] != whole[hidden]).any(-1).all()


def test_tokens_of_a_network_without_any_are_refused():
    with pytest.raises(RecipeError, match="kind: must be block for mobilenet_v2, got token: only"):
        build_objective(shipped("toyland/dacs", [*TINY, "method.masking={kind: token}"]), 5)


def test_blocks_larger_than_a_crop_are_refused_but_tokens_have_their_own_size():
    shipped("gta5_cityscapes/dacs", ["method.masking={kind: token, size: 600}"])
    with pytest.raises(RecipeError, match="size: must be at most 512, the shorter side of a crop"):
        shipped("gta5_cityscapes/dacs", ["method.masking={kind: block, size: 600}"])
