"""The built-in heads keep the contract."""

from typing import get_args

import pytest

from tests.contracts.head import CLASSES, HeadContract
from udaseg.models.heads.head import head_class
from udaseg.recipe.choices import HeadName
from udaseg.recipe.schema import Model


@pytest.mark.parametrize("name", get_args(HeadName))
class TestBuiltInHeads(HeadContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        self.name = name

    def make(self, backbone):
        spec = Model("resnet18", 8, "random", "train", self.name, (1, 2), head_channels=16)
        return head_class(self.name).from_spec(spec, backbone, CLASSES)
