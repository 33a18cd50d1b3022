import typing

import pytest

from tests.contracts.objective import CLASSES, ObjectiveContract
from tests.support.small import shipped
from udaseg.methods.build import build_objective
from udaseg.recipe.methods import Objective as ObjectiveSpec
from udaseg.recipe.stages import stages_of

SMALL = [
    "model.backbone=mobilenet_v2",
    "model.weights=random",
    "model.output_stride=16",
    "model.head=deeplab_v2",
    "model.aspp_dilations=[1, 2]",
]


def _objectives():
    """Yield (name, recipe, stage) of each objective of the shipped toyland recipes."""
    for name in ("source_only", "dacs", "rccr", "sepico", "advent", "minent", "fda", "spcl"):
        recipe = shipped(f"toyland/{name}", SMALL)
        for stage in stages_of(recipe):
            yield (f"{name} {stage.name}" if stage.name else name), recipe, stage


MEMBERS = {name: (recipe, stage) for name, recipe, stage in _objectives()}


TWINS = {"dacs", "fda"}
"""Objectives that differ from another member only in settings."""


@pytest.mark.parametrize(
    "member",
    [pytest.param(name, marks=pytest.mark.slow if name in TWINS else []) for name in MEMBERS],
    scope="class",
)
class TestObjective(ObjectiveContract):
    @pytest.fixture(autouse=True)
    def _choose(self, member):
        self.recipe, self.stage = MEMBERS[member]

    def make(self):
        return build_objective(self.recipe, CLASSES, stage=self.stage)


def test_every_objective_of_the_schema_is_a_member_here():
    specs = {type(stage.objective) for _, stage in MEMBERS.values()}
    assert specs == set(typing.get_args(ObjectiveSpec))
