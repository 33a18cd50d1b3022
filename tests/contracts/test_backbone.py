"""The built-in backbones keep the contract."""

import pytest
from torch import nn

from tests.contracts.backbone import BackboneContract
from tests.support.small import small_segmenter
from udaseg.models.backbones.build import build_backbone
from udaseg.recipe.schema import BACKBONES

LARGE = {"resnet50", "resnet101", "mobilenet_v3_large", "vgg16", "vgg16_bn", "efficientnet_lite0"}
MEMBERS = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else [])
    for name in [*BACKBONES, "timm:test_efficientnet"]
]


@pytest.mark.parametrize("name", MEMBERS)
class TestBuiltInBackbones(BackboneContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        self.name = name

    def make(self, output_stride):
        return build_backbone(self.name, output_stride=output_stride, weights="random")


OF_TIMM = {
    "test_vit": 16,
    "test_convnext": 32,
    **dict.fromkeys(
        ("resnet18", "mobilenetv2_100", "convnextv2_atto", "pvt_v2_b0", "vgg11_bn"), 32
    ),
    **dict.fromkeys(("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"), 32),
    **dict.fromkeys(("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"), 14),
    **dict.fromkeys(("vit_small_patch16_dinov3", "vit_tiny_patch16_224"), 16),
    **dict.fromkeys(("deit3_small_patch16_224", "vit_base_patch16_siglip_224"), 16),
    "eva02_tiny_patch14_336": 14,
}
"""Strides of networks of timm, without dilation."""
SLOW = [
    pytest.param(name, marks=[] if name.startswith("test_") else pytest.mark.slow)
    for name in OF_TIMM
]


@pytest.mark.parametrize("name", SLOW)
class TestNetworksOfTimm(BackboneContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        self.name, self.output_strides = name, (OF_TIMM[name],)

    def make(self, output_stride):
        backbone = build_backbone(f"timm:{self.name}", output_stride=32, weights="random")
        for (
            part
        ) in backbone.modules():  # the last norm of some blocks starts at 0, and hides others
            if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.ones_(part.weight)
        return backbone


class TestSequenceOfLayers(BackboneContract):
    """Layers that are no blocks of their own."""

    output_strides = (8,)

    def make(self, output_stride):
        return small_segmenter().backbone
