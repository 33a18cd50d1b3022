"""The built-in backbones keep the contract."""

import pytest

from tests.contracts.backbone import BackboneContract
from tests.support.small import small_segmenter
from udaseg.models.backbones.build import build_backbone
from udaseg.recipe.schema import BACKBONES

NEED_TIMM = {"efficientnet_lite0", "timm:test_efficientnet"}


LARGE = {"resnet50", "resnet101", "mobilenet_v3_large", "efficientnet_lite0"}
MEMBERS = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else [])
    for name in [*BACKBONES, "timm:test_efficientnet"]
]


@pytest.mark.parametrize("name", MEMBERS)
class TestBuiltInBackbones(BackboneContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        if name in NEED_TIMM:
            pytest.importorskip("timm")
        self.name = name

    def make(self, output_stride):
        return build_backbone(self.name, output_stride=output_stride, weights="random")


class TestSequenceOfLayers(BackboneContract):
    """Layers that are no blocks of their own."""

    output_strides = (8,)

    def make(self, output_stride):
        return small_segmenter().backbone
