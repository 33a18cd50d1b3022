"""The built-in heads keep the contract."""

from typing import get_args

import pytest

from tests.contracts.head import CLASSES, LAYOUTS, HeadContract, Maps
from udaseg.models.heads.head import head_class
from udaseg.recipe.choices import HeadName
from udaseg.recipe.schema import Model


def head_of(name, backbone):
    spec = Model("resnet18", 8, "random", "train", name, (1, 2), head_channels=16)
    return head_class(name).from_spec(spec, backbone, CLASSES)


@pytest.mark.parametrize("name", [name for name in get_args(HeadName) if name != "pyramid"])
class TestBuiltInHeads(HeadContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        self.name = name

    def make(self, backbone):
        return head_of(self.name, backbone)


class TestPyramid(HeadContract):
    """It refuses a backbone of one map."""

    @pytest.fixture(params=[name for name in LAYOUTS if name != "one map"])
    def backbone(self, request):
        return Maps(*LAYOUTS[request.param])

    def make(self, backbone):
        return head_of("pyramid", backbone)
