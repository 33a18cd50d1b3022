"""Network files: `--network NAME` puts one over the recipe of any pair and method.

A network file has the sections `model` and `optimizer` of a recipe, and `crop`, how large the crops
of a recipe may be with it. Those shipped are in `recipes/networks/`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from udaseg.documents import (
    ListNode,
    MappingNode,
    ScalarNode,
    node_at,
    plain_value,
    read_document,
)
from udaseg.errors import RecipeError
from udaseg.recipe.choices import Size
from udaseg.recipe.hints import key_hint
from udaseg.recipe.library import NETWORK, is_a_recipe
from udaseg.recipe.methods import Staged, stage_ends
from udaseg.recipe.schema import Model, Optimizer, Recipe
from udaseg.validation import validate

_WARMUP_PART = 10


@dataclass(frozen=True)
class CropLimit:
    """The crops that suit a network."""

    most: Size
    """(height, width) of the largest crop; smaller ones of a recipe stay as they are."""
    multiple: Annotated[int, Ge(1)]
    """Sides are rounded down to a multiple of this, such as the patch of a ViT, but not to 0."""

    def fit(self, crop: list[int]) -> list[int]:
        """Return the (height, width) of a crop within the limit.

        Example:
            CropLimit(most=(518, 518), multiple=14).fit([360, 640])  # [350, 518]
        """
        sides = map(min, crop, self.most)
        return [side // self.multiple * self.multiple or side for side in sides]


@dataclass(frozen=True)
class _NetworkSpec:
    model: Model
    optimizer: Optimizer
    crop: CropLimit


@dataclass(frozen=True)
class Network:
    """A network file, ready to be put over recipes.

    Attributes:
        name: The stem of the file, which ends the names of recipes.
        crop: The limit of the crops.
    """

    name: str
    crop: CropLimit
    _root: MappingNode

    def put_over(self, recipe: MappingNode) -> None:
        """Put the network over a recipe that is not validated yet: name, sections and crops."""
        recipe.entries.pop("expected", None)  # the score of another network
        position, name = recipe.entries.get("name", ("", None))
        if isinstance(name, ScalarNode):
            text = f"{name.text}-{re.sub('[^A-Za-z0-9._-]', '_', self.name)}"
            recipe.entries["name"] = (position, ScalarNode(text, True, name.position))
        for section in ("model", "optimizer"):
            position, node = self._root.entries[section]
            assert isinstance(node, MappingNode)
            # a copy, which overrides may change
            recipe.entries[section] = (position, MappingNode(dict(node.entries), node.position))
        for domain in _domains(recipe):
            position, crop = domain.entries.get("crop", ("", None))
            sides = plain_value(crop) if isinstance(crop, ListNode) else []
            if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
                domain.entries["crop"] = (position, _list_node(self.crop.fit(sides), position))

    def limit_warmup(self, recipe: Recipe) -> Recipe:
        """Return the recipe with a warm-up of at most a tenth of its steps.

        In a staged method, where each stage warms up, it is a tenth of the shortest stage.
        """
        ends = [recipe.steps]
        if isinstance(recipe.method, Staged):
            ends = [*stage_ends(recipe.method, recipe.steps)]
        least = min(end - start for start, end in zip([0, *ends], ends, strict=False))
        warmup = min(recipe.optimizer.warmup, least // _WARMUP_PART)
        return replace(recipe, optimizer=replace(recipe.optimizer, warmup=warmup))


def read_network(path: Path) -> Network:
    """Return the network of a file.

    Raises:
        RecipeError: The file cannot be read or is wrong; all errors are listed as
            `FILE:LINE:COL: KEY: what`.
    """
    document = read_document(path, NETWORK)
    if "method" in document.root.entries:
        raise RecipeError(is_a_recipe(str(path)))
    spec = validate(_NetworkSpec, document, key_hint=key_hint, yaml_1_1=True)
    if spec is not None and min(spec.crop.most) < spec.crop.multiple:
        must = f"at least crop.multiple ({spec.crop.multiple}) a side"
        document.add("crop.most", f"must be {must}, got {list(spec.crop.most)}")
    document.problems.raise_if_any()
    assert spec is not None
    return Network(path.stem, spec.crop, document.root)


def _domains(recipe: MappingNode) -> Iterator[MappingNode]:
    """Yield the sections that have a crop: source, target, and the targets of stages."""
    stages = node_at(recipe, "method", "stages")
    for holder in [recipe, *(stages.items if isinstance(stages, ListNode) else ())]:
        for name in ("source", "target"):
            domain = node_at(holder, name)
            if isinstance(domain, MappingNode):
                yield domain


def _list_node(numbers: list[int], position: str) -> ListNode:
    return ListNode([ScalarNode(f"{each}", False, position) for each in numbers], position)
