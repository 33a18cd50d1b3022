"""How released networks differ from torchvision's, against torchvision or a written rule."""

import pytest
import torch
import torchvision
from torch import nn

from udaseg.errors import RecipeError
from udaseg.models.backbones.backbone import BackboneOptions
from udaseg.models.backbones.build import build_backbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import load


def resnet(name="resnet50", output_stride=8, **options):
    torch.manual_seed(0)
    return build_backbone(
        name, output_stride=output_stride, weights="random", options=BackboneOptions(**options)
    ).eval()


@pytest.mark.parametrize(
    ("output_stride", "dilated"), [(8, (False, True, True)), (16, (False, False, True))]
)
def test_the_previous_first_dilation_is_that_of_torchvision(output_stride, dilated):
    images = torch.rand(1, 3, 65, 97)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=dilated).eval()
    for part in ("avgpool", "fc"):
        setattr(theirs, part, nn.Identity())
    with torch.no_grad():
        expected = theirs(images)
        found = resnet(output_stride=output_stride, first_dilation="previous")(images)[-1]
        own = resnet(output_stride=output_stride)(images)[-1]
    assert torch.equal(found.flatten(1), expected)
    assert (own - found).abs().max() > 0.01 * found.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_a_vgg_is_torchvisions_and_dilated_has_no_late_pooling(name, tmp_path):
    """As in AdaptSegNet's code: at stride 8, conv5 has dilation 2, and two poolings are gone."""
    layers = list(getattr(torchvision.models.vgg, name)().features.eval())
    state = nn.Sequential(*layers).state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "vgg.pth")
    images = torch.randn(2, 3, 64, 96)
    weights = str(tmp_path / "vgg.pth")
    with torch.no_grad():
        whole = build_backbone(name, output_stride=32, weights=weights).eval()(images)
        assert torch.equal(whole[-1], nn.Sequential(*layers)(images))
        poolings = [at for at, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        assert torch.equal(whole[0], nn.Sequential(*layers[: poolings[2]])(images))
        for layer in layers[poolings[3] :]:
            if isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (2, 2)
        kept = [layer for at, layer in enumerate(layers) if at not in poolings[3:]]
        dilated = build_backbone(name, output_stride=8, weights=weights).eval()(images)
        assert torch.equal(dilated[-1], nn.Sequential(*kept)(images))
    assert dilated[-1].shape == (2, 512, 8, 12)


@pytest.mark.parametrize(("ceil", "cells"), [(True, 65), (False, 64)])
def test_pooling_that_rounds_up_gives_65_cells(ceil, cells):
    with torch.no_grad():
        *_, last = resnet("resnet18", ceil_pool=ceil)(torch.rand(1, 3, 512, 64))
    assert last.shape[-2] == cells


def test_a_stride_in_the_1x1_convolution_skips_every_second_pixel_before_the_block():
    block = resnet(stride_in="1x1").rest[0][0]
    shortcut = nn.Sequential(nn.Conv2d(256, 512, 1, bias=False), nn.BatchNorm2d(512))
    same = torchvision.models.resnet.Bottleneck(256, 128, downsample=shortcut).eval()
    same.load_state_dict(block.state_dict())
    maps = torch.rand(1, 256, 9, 13)
    with torch.no_grad():
        found, other = block(maps), resnet(stride_in="3x3").rest[0][0](maps)
        assert torch.allclose(found, same(maps[:, :, ::2, ::2]), atol=1e-6)
    assert (found - other).abs().max() > 0.1


def test_caffe_images_are_bgr_in_255_less_a_mean():
    backbone = resnet("resnet18", input="caffe")
    seen = []
    backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network = Segmenter(backbone, DeepLabV2(backbone.channels, 5)).eval()
    pixels = torch.randint(0, 256, (1, 3, 40, 56))
    with torch.no_grad():
        network(pixels / 255)
    blue_green_red = pixels.double()[:, [2, 1, 0]]
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).double().view(1, 3, 1, 1)
    assert (seen[0] - (blue_green_red - mean)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("backbone", "setting", "shown"),
    [
        ("mobilenet_v2", "ceil_pool=true", "false for mobilenet_v2: only resnet18"),
        ("mobilenet_v2", "first_dilation=previous", "own for mobilenet_v2: only resnet18"),
        ("resnet18", "stride_in=1x1", "3x3 for resnet18: only resnet50, resnet101"),
        ("resnet101", "input=caffe", "imagenet with model.weights=imagenet"),
    ],
)
def test_a_setting_that_the_backbone_or_its_weights_lack_is_refused(backbone, setting, shown):
    words = [f"model.backbone={backbone}", f"model.{setting}"]
    with pytest.raises(RecipeError, match=shown):
        load(find_recipe("gta5_cityscapes/rccr"), overrides=words)


def test_a_recipe_has_the_settings():
    words = ["model.backbone=resnet50", "model.weights=random", "model.ceil_pool=true"]
    words += ["model.stride_in=1x1", "model.input=caffe", "model.first_dilation=previous"]
    spec = load(find_recipe("gta5_cityscapes/rccr"), overrides=words).model
    body = build_segmenter(spec, 19).backbone
    assert body.low[3].ceil_mode
    assert body.rest[0][0].conv1.stride == (2, 2)
    assert body.bgr
    rates = [body.rest[layer][0].conv2.dilation[0] for layer in (1, 2)]
    assert rates == [1, 2]


@pytest.mark.parametrize("ceil_pool", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_grid_of_an_image_is_known_before_it_is_seen(output_stride, ceil_pool):
    backbone = resnet("resnet18", output_stride=output_stride, ceil_pool=ceil_pool)
    for rows, columns in [(64, 65), (66, 67), (97, 90), (33, 128)]:
        with torch.no_grad():
            maps = backbone(torch.rand(1, 3, rows, columns))
        assert backbone.map_sizes((rows, columns)) == [each.shape[-2:] for each in maps]
        assert backbone.grid((rows, columns)) == tuple(maps[-1].shape[-2:])
