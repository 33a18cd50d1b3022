"""Networks of timm: what they compute, how they are cut into blocks, and what is refused."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.contracts.backbone import images
from tests.support.small import shipped
from udaseg.errors import RecipeError
from udaseg.models.backbones.backbone import BackboneOptions
from udaseg.models.backbones.build import build_backbone
from udaseg.models.weights import read_state_dict


def build(name, *, seed=0, drop_path=0.0, **options):
    torch.manual_seed(seed)
    given = BackboneOptions(drop_path=drop_path)
    return build_backbone(f"timm:{name}", weights="random", options=given, **options)


def test_four_levels_of_dinov2_are_those_of_timm_to_the_bit(sample_data):
    path = sample_data / "weights" / "vit_small_patch14_dinov2.safetensors"
    body = build_backbone("timm:vit_small_patch14_dinov2", weights=str(path)).eval()
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    theirs.load_state_dict(read_state_dict(path))
    given = images(1, (56, 84))
    with torch.no_grad():
        expected = theirs.eval().forward_intermediates(given, indices=[2, 5, 8, 11], norm=True)[1]
        maps = body(given)
    assert body.strides == (14,) * 4
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))


def test_images_are_enlarged_to_whole_patches_and_else_left_as_they_are():
    body = build("test_vit").eval()
    body.network.forward_intermediates = lambda images, **_: [images]
    whole, odd = images(1, (48, 64)), images(1, (33, 64))
    assert body(whole)[0] is whole
    expected = F.interpolate(odd, (48, 64), mode="bilinear", align_corners=False)
    assert torch.equal(body(odd)[0], expected)


def test_images_of_convnext_are_padded_with_zeros_and_its_maps_cut():
    body = build("test_convnext", output_stride=32).eval()
    given = images(1, (33, 70))
    with torch.no_grad():
        maps, whole = body(given), body.network(F.pad(given, (0, 96 - 70, 0, 64 - 33)))
    assert [tuple(each.shape[-2:]) for each in maps] == [(9, 18), (5, 9), (3, 5), (2, 3)]
    for each, padded in zip(maps, whole, strict=True):
        assert torch.equal(each, padded[..., : each.shape[-2], : each.shape[-1]])


def test_a_network_with_padding_of_its_own_gets_the_images_as_they_are():
    body, theirs = build("test_efficientnet"), "test_efficientnet"
    torch.manual_seed(0)
    other = timm.create_model(theirs, features_only=True, output_stride=16)
    given = images(1, (65, 97))
    with torch.no_grad():
        for ours, expected in zip(body.eval()(given), other.eval()(given)[1:], strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("name", "stage_ends", "layers"),
    [
        ("test_vit", (1, 3, 4, 6), {"cls_token": 0, "pos_embed": 0, "norm.weight": 6}),
        ("test_vit", (1, 3, 4, 6), {"blocks.0.norm1.weight": 1, "blocks.5.mlp.fc2.bias": 6}),
        ("test_convnext", (1, 3, 7, 9), {"stem_0.weight": 0, "stages_1.downsample.1.bias": 2}),
        ("test_efficientnet", (1, 2, 3, 4), {"conv_stem.weight": 0, "blocks.4.0.bn1.bias": 4}),
    ],
)
def test_blocks_are_numbered_from_the_images_on(name, stage_ends, layers):
    body = build(name)
    assert (body.stage_ends, body.depth) == (stage_ends, stage_ends[-1])
    assert build(name, levels=(-1,)).stage_ends == stage_ends
    assert {part: body.layer_of(f"network.{part}") for part in layers} == layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage_ends", "between"),
    [
        ("resnet18", (2, 4, 6, 8), {}),
        ("mobilenetv2_100", (3, 6, 13, 17), {}),
        ("vgg11_bn", (4, 6, 8, 8), {"features_1.weight": 2}),
        ("pvt_v2_b0", (2, 4, 6, 8), {"stages_0.norm.bias": 2, "stages_1.downsample.proj.bias": 3}),
        ("swin_tiny_patch4_window7_224", (2, 4, 10, 12), {"layers_2.downsample.norm.bias": 5}),
        ("vit_small_patch16_dinov3", (3, 6, 9, 12), {"reg_token": 0}),
    ],
)
def test_blocks_of_each_family(name, stage_ends, between):
    body = build(name)
    assert (body.stage_ends, body.depth) == (stage_ends, stage_ends[-1])
    assert {part: body.layer_of(f"network.{part}") for part in between} == between


def test_what_timm_does_not_decay_is_not_decayed():
    body = build("test_vit")
    theirs = {f"network.{name}" for name in body.network.no_weight_decay()}
    assert body.undecayed == theirs & {name for name, _ in body.named_parameters()} != set()


def test_a_checkpointed_vit_stores_the_inputs_of_blocks():
    body, stored = build("test_vit").train(), {}
    weights = {part.untyped_storage().data_ptr() for part in body.parameters()}

    def note(value):
        stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    sizes = []
    for forward in (body.forward, body.forward_checkpointed):
        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            maps = forward(images(2, (64, 64)))
        sizes.append(sum(size for where, size in stored.items() if where not in weights))
        del maps
    assert sizes[1] < sizes[0] / 3
    assert all("forward" not in vars(part) for part in body.modules())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "efficientnet_lite0"])
def test_drop_path_rises_with_the_blocks_and_is_drawn_again_by_checkpointing(name):
    torch.manual_seed(0)
    full = name if name == "efficientnet_lite0" else f"timm:{name}"
    body = build_backbone(full, weights="random", options=BackboneOptions(drop_path=0.4))
    rates = [part.drop_prob for part in body.modules() if hasattr(part, "drop_prob")]
    assert rates == sorted(rates)
    assert rates[0] <= 0.1 < 0.3 < rates[-1] < 0.401
    ends = []
    for other in (body, copy.deepcopy(body)):
        forward = other.forward if other is body else other.forward_checkpointed
        torch.manual_seed(1)
        sum(each.square().sum() for each in forward(images(2, (64, 64)))).backward()
        ends.append([part.grad for part in other.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    torch.manual_seed(2)
    maps = body(images(2, (64, 64)))
    torch.manual_seed(1)
    assert not torch.equal(maps[-1], body(images(2, (64, 64)))[-1])


@pytest.mark.slow
def test_networks_have_no_drop_path_unless_it_is_asked_for():
    """timm gives Swin a rate of 0.1."""
    body = build("swin_tiny_patch4_window7_224")
    assert not [part for part in body.modules() if hasattr(part, "drop_prob")]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("test_maxvit", "test_maxvit cannot take images of another size than it was built for"),
        ("test_vit_relpos", "at strides 16, 16, 16, but none at stride 4"),
        ("test_convnet", "timm has no network 'test_convnet'; did you mean 'timm:test_convnext'?"),
        ("test_vit.of_nobody", "timm cannot build test_vit.of_nobody as a backbone: Invalid"),
    ],
)
def test_what_is_no_backbone_is_refused_in_a_sentence(name, problem):
    with pytest.raises(RecipeError) as caught:
        build(name)
    assert str(caught.value).startswith("model.backbone: ")
    assert problem in str(caught.value)


def test_drop_path_is_refused_where_a_network_has_none():
    with pytest.raises(RecipeError, match=r"model\.drop_path: timm:vgg11 has no drop path"):
        build("vgg11", drop_path=0.1)
    with pytest.raises(RecipeError, match=r"model\.drop_path: must be 0 for mobilenet_v2"):
        shipped("toyland/rccr", ["model.backbone=mobilenet_v2", "model.drop_path=0.1"])


def test_a_network_without_dilation_keeps_its_stride():
    assert build("test_mambaout", output_stride=8).strides == (4, 8, 16, 32)
    assert build("test_convnext", output_stride=8).strides == (4, 8, 8, 8)
