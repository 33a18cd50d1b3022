"""Each bound of each field alone refuses a value: `bounds.txt` has a line for every one."""

import json
import re
import types
import typing
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from udaseg.errors import RecipeError
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import from_dict, load, to_dict
from udaseg.recipe.schema import Recipe
from udaseg.validation import field_type, sections

LINES = (Path(__file__).parent / "bounds.txt").read_text(encoding="utf-8").splitlines()
ROWS = [re.split("  +", line) for line in LINES]


@pytest.mark.parametrize(("recipe", "key", "value", "expected"), ROWS)
def test_a_value_just_outside_a_bound_is_refused_with_the_range(recipe, key, value, expected):
    values = to_dict(load(find_recipe(f"gta5_cityscapes/{recipe}")))
    section = values
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", key)]
    for part in parents:
        section = section[part]
    section[last] = json.loads(value)
    with pytest.raises(RecipeError) as caught:
        from_dict(values, "run")
    item, _, must = expected.rpartition("must ")
    assert str(caught.value) == f"run: {key}{item.strip()}: must {must}"


def test_every_bound_of_the_schema_has_a_line():
    bounds = {
        bound
        for section in sections(Recipe)
        for name, annotation in typing.get_type_hints(section, include_extras=True).items()
        for bound in bounds_of(annotation, f"{section.__name__}.{name}")
    }
    assert len(ROWS) == len(bounds)


def bounds_of(annotation, path):
    expected, constraints, _ = field_type(annotation)
    for constraint in constraints:
        for bound in constraint if isinstance(constraint, Interval) else [constraint]:
            is_pattern = isinstance(bound, FieldInfo) and bound.discriminator is None
            if is_pattern or isinstance(bound, Ge | Gt | Le | Lt | MinLen):
                yield f"{path} {type(bound).__name__}"
    for member in typing.get_args(expected) if _is_union(expected) else (expected,):
        for index, item in enumerate(typing.get_args(member)):
            if typing.get_origin(member) is tuple:
                yield from bounds_of(item, f"{path}[{index}]")


def _is_union(annotation):
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
