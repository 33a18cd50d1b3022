"""The built-in heads keep the contract."""

from typing import get_args, get_type_hints

import pytest

from tests.contracts.head import CLASSES, HeadContract
from udaseg.models.heads.build import HEADS
from udaseg.recipe.schema import Model


@pytest.mark.parametrize("name", HEADS)
class TestBuiltInHeads(HeadContract):
    @pytest.fixture(autouse=True)
    def use(self, name):
        self.name = name

    def make(self, backbone):
        spec = Model("resnet18", 8, "random", "train", self.name, (1, 2), head_channels=16)
        return HEADS[self.name].from_spec(spec, backbone, CLASSES)


def test_recipes_know_every_head():
    assert set(get_args(get_type_hints(Model)["head"])) == set(HEADS)
