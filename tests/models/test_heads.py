"""Heads against their rules, written out with other operations, and on real backbones."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.small import shipped, small_segmenter
from udaseg.errors import RecipeError
from udaseg.inference.export import ExportModule, compare_with_torch, write_onnx
from udaseg.models.heads.daformer import DAFormerHead
from udaseg.models.heads.head import head_class
from udaseg.models.heads.linear import LinearHead
from udaseg.models.heads.pyramid import PyramidHead
from udaseg.models.heads.upsample import UpsampleHead
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.choices import HeadName


def moved(head):
    """Return a head in evaluation mode whose norms are not the identity."""
    for part in head.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
        if hasattr(part, "eps"):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
    return head.eval()


def per_cell(layer, maps):
    """Return what a 1x1 convolution returns."""
    found = torch.einsum("bchw,dc->bdhw", maps, layer.weight[:, :, 0, 0])
    return found if layer.bias is None else found + layer.bias.view(-1, 1, 1)


def blown_up(layer, maps):
    """Return what an up-convolution returns: factor x factor cells of each cell."""
    if isinstance(layer, nn.Conv2d):
        return per_cell(layer, maps)
    batch, _, rows, columns = maps.shape
    factor = layer.stride[0]
    found = torch.einsum("bchw,cdij->bdhiwj", maps, layer.weight)
    found = found.reshape(batch, -1, rows * factor, columns * factor)
    return found if layer.bias is None else found + layer.bias.view(-1, 1, 1)


def normalised(norm, maps, mean, variance):
    scaled = (maps - mean) / (variance + norm.eps).sqrt()
    return scaled * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def by_statistics(norm, maps):
    """Return what a batch norm in evaluation mode returns."""
    mean, variance = (each.view(-1, 1, 1) for each in (norm.running_mean, norm.running_var))
    return normalised(norm, maps, mean, variance)


def by_cell(norm, maps):
    """Return what a layer norm over the channels of each cell returns."""
    return normalised(
        norm, maps, maps.mean(1, keepdim=True), maps.var(1, keepdim=True, unbiased=False)
    )


def close(one, two):
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-4)


def test_the_linear_head_normalises_and_multiplies_each_cell():
    torch.manual_seed(0)
    head, last = moved(LinearHead((2, 6), 3)), torch.randn(2, 6, 4, 5)
    expected = per_cell(head.classify, by_statistics(head.norm, last))
    assert close(head([torch.zeros(0), last]), expected)


def test_the_upsample_head_makes_16_cells_of_one_with_layer_norms():
    torch.manual_seed(0)
    head, last = moved(UpsampleHead((6,), 3, width=8)), torch.randn(2, 6, 4, 5)
    first, one, _, second, two, smooth, three = head.enlarge
    found = F.gelu(by_cell(one, blown_up(first, last)))
    found = by_cell(two, blown_up(second, found))
    found = by_cell(three, F.conv2d(found, smooth.weight, padding=1))
    assert close(head([last]), per_cell(head.classify, found))
    assert head([last]).shape == (2, 3, 16, 20)
    assert [layer.weight.shape[1] for layer in (first, second)] == [8, 4]


@pytest.mark.parametrize(
    ("strides", "sizes", "factors"),
    [
        pytest.param((4, 8, 16, 32), [(17, 25), (9, 13), (5, 7), (3, 4)], (1, 1, 1), id="cnn"),
        pytest.param((4, 8, 8, 8), [(17, 25), *[(9, 13)] * 3], (1, 1, 1), id="dilated"),
        pytest.param((14, 14, 14, 14), [(5, 7)] * 4, (1, 2, 4), id="vit"),
    ],
)
def test_the_pyramid_head_merges_from_the_last_map_to_the_first(strides, sizes, factors):
    torch.manual_seed(0)
    head = moved(PyramidHead((4, 5, 6, 7), strides, 3, width=8))
    maps = [torch.randn(2, 4 + level, *size) for level, size in enumerate(sizes)]
    found = maps[3]
    for merge, level in enumerate((2, 1, 0)):
        beside = blown_up(head.laterals[merge], maps[level])
        assert beside.shape[1] == 8 // 2**merge
        assert beside.shape[-1] == maps[level].shape[-1] * factors[merge]
        above = blown_up(head.ups[merge], found)[:, :, : beside.shape[2], : beside.shape[3]]
        smooth, norm, _ = head.smooths[merge]
        found = F.conv2d(above + beside, smooth.weight, padding=1)
        found = by_statistics(norm, found).relu()
    found = F.conv2d(found, head.last.weight, head.last.bias, padding=1)
    assert close(head(maps), per_cell(head.classify, found))


@pytest.mark.parametrize("strides", [(8,), (4, 14)])
def test_a_pyramid_without_levels_to_merge_is_refused_with_another_head(strides):
    with pytest.raises(RecipeError, match=rf"model\.head: pyramid.*{strides[-1]}\].*upsample"):
        PyramidHead((4,) * len(strides), strides, 3)


def test_the_daformer_head_fuses_all_maps_on_the_finest_grid():
    torch.manual_seed(0)
    head = moved(DAFormerHead((4, 5, 6), (4, 8, 8), 3, (2, 3), width=8))
    maps = [torch.randn(2, 4, 9, 13), torch.randn(2, 5, 5, 7), torch.randn(2, 6, 5, 7)]
    embedded = [per_cell(layer, each) for layer, each in zip(head.embed, maps, strict=True)]
    resized = [F.interpolate(each, (9, 13), mode="bilinear") for each in embedded[1:]]
    together = torch.cat([embedded[0], *resized], 1)
    branches = [by_statistics(head.point[1], per_cell(head.point[0], together)).relu()]
    for branch, dilation in zip(head.branches, (2, 3), strict=True):
        alone = F.conv2d(together, branch[0].weight, padding=dilation, dilation=dilation, groups=24)
        alone = by_statistics(branch[1], alone).relu()
        branches.append(by_statistics(branch[4], per_cell(branch[3], alone)).relu())
    fused = F.conv2d(torch.cat(branches, 1), head.fuse[0].weight, padding=1)
    fused = by_statistics(head.fuse[1], fused).relu()
    assert close(head(maps), per_cell(head.classify, fused))


def test_the_daformer_head_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    head = DAFormerHead((4,), (8,), 3, (1,), width=400)
    dropped = []
    head.drop.register_forward_hook(lambda _, given, out: dropped.append((given[0], out)))
    maps = [torch.randn(4, 4, 5, 7)]
    for mode in (True, False):
        head.train(mode)(maps)
    (given, kept), (same, out) = dropped
    whole = kept.flatten(2).any(2)
    live = given.flatten(2).any(2)
    assert 0.05 < 1 - whole[live].float().mean() < 0.15
    assert torch.allclose(kept[whole], given[whole] / 0.9)
    assert torch.equal(same, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(HeadName))
def test_an_onnx_file_of_each_head_agrees_at_two_sizes(name, tmp_path):
    pytest.importorskip("onnxruntime")
    body = small_segmenter(projector=False).backbone
    spec = replace(shipped("toyland/rccr").model, aspp_dilations=(1, 2), head_channels=16)
    network = Segmenter(body, head_class(name).from_spec(spec, body, 5))
    module = ExportModule(network, uint8=True, argmax=False).eval()
    write_onnx(module, tmp_path / "head.onnx", {})
    noise = np.random.default_rng(0).integers(0, 256, (2, 97, 130, 3), dtype=np.uint8)
    found = compare_with_torch(module, tmp_path / "head.onnx", [*noise], on_real_images=False)
    assert found.relative < 1e-4


REAL = {"resnet18": (4, 4), "timm:test_convnext": (4, 4), "timm:test_vit": (16, 4)}
"""Strides of the finest maps of real backbones, and of the logits of heads that enlarge most."""


@pytest.mark.parametrize("backbone", REAL)
@pytest.mark.parametrize("name", get_args(HeadName))
def test_each_head_learns_on_a_cnn_a_convnext_and_a_vit(name, backbone):
    torch.manual_seed(0)
    spec = replace(
        shipped("toyland/rccr").model,
        backbone=backbone,
        output_stride=32,
        weights="random",
        head=name,
        aspp_dilations=(1, 2),
        head_channels=16,
    )
    network = build_segmenter(spec, 5)
    images, last = torch.rand(2, 3, 80, 112), network.output_stride
    logits = network(images).logits
    stride = {
        **dict.fromkeys(("deeplab_v2", "linear"), last),
        **dict.fromkeys(("deeplab_v3plus", "daformer"), REAL[backbone][0]),
        "upsample": last / 4,
        "pyramid": REAL[backbone][1],
    }[name]
    cells = [
        -(-side // last) * 4 if name == "upsample" else -(-side // stride) for side in (80, 112)
    ]
    assert logits.shape == (2, 5, *cells)
    logits.square().mean().backward()
    first = next(network.backbone.parameters())
    assert all(value.grad.any() for value in (first, *network.head.parameters()))


@pytest.mark.parametrize("name", ["daformer", "pyramid"])
def test_activation_checkpointing_of_a_head_changes_no_bit(name):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        body = small_segmenter(projector=False).backbone
        spec = replace(shipped("toyland/rccr").model, aspp_dilations=(1, 2), head_channels=16)
        network = Segmenter(body, head_class(name).from_spec(spec, body, 5))
        network.recompute = recompute
        network(torch.rand(2, 3, 64, 96)).logits.square().mean().backward()
        state = {
            **network.state_dict(),
            **{f"grad {n}": p.grad for n, p in network.named_parameters()},
        }
        found.append(state)
    plain, checkpointed = found
    assert [key for key in plain if not torch.equal(plain[key], checkpointed[key])] == []
