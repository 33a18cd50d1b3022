"""What is said about a field stands at the field, and a list of choices stands once."""

import ast
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from udaseg.data.loading import crops
from udaseg.recipe import choices, methods
from udaseg.recipe.contrast import Prototypes, Regional
from udaseg.recipe.schema import Machine
from udaseg.selection.criteria import CRITERIA

FOLDER = Path(choices.__file__).parent


@pytest.mark.parametrize("module", ["schema", "methods", "contrast"])
def test_every_field_has_its_text_below_it_and_nowhere_else(module):
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    for section in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        assert "Attributes:" not in ast.get_docstring(section)
        for part, following in zip(section.body, [*section.body[1:], None], strict=True):
            if isinstance(part, ast.AnnAssign) and not _has_one_value(part.annotation):
                assert _is_text(following), f"{section.name}.{part.target.id}"


def _has_one_value(annotation):
    return isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Constant)


def _is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_a_regularizer_that_is_missing_in_the_union_is_no_silent_term(monkeypatch):
    monkeypatch.setattr(methods, "RegularizerSpec", Regional | Prototypes)
    with pytest.raises(TypeError, match="semantic's class to RegularizerSpec"):
        methods.built_in_regularizers()


def test_lists_of_choices_agree():
    assert [each.name for each in CRITERIA] == list(get_args(choices.Criterion))
    assert get_args(crops.Sampling) == get_args(choices.Sampling)
    assert get_type_hints(Machine)["precision"] == choices.Precision
