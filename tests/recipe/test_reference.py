"""The JSON schema of recipes, and the page made of it."""

import json
from pathlib import Path

import udaseg
from tests.cli import running
from udaseg.recipe.hints import schema_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def test_the_page_of_every_key_is_the_one_that_the_schema_makes():
    message = "make reference writes docs/recipes.md anew"
    assert PAGE.read_text(encoding="utf-8") == udaseg.recipe_reference(), message


def test_every_key_is_in_the_schema_and_says_what_it_means():
    schema = udaseg.recipe_schema()
    described, pending = {"kind"}, [schema]
    for section in [*pending, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for name, value in section["properties"].items():
            assert name == "kind" or value["description"], name
            described.add(name)
    assert {key.rpartition(".")[2] for key in schema_keys()} == described
    assert schema["properties"]["steps"]["minimum"] == 1
    assert schema["$defs"]["Optimizer"]["properties"]["momentum"]["exclusiveMaximum"] == 1


def test_the_command_prints_both(tmp_path):
    printed = running.udaseg("recipes", "schema", cwd=tmp_path).stdout
    assert json.loads(printed) == udaseg.recipe_schema()
    page = running.udaseg("recipes", "schema", "--markdown", cwd=tmp_path).stdout
    assert page == udaseg.recipe_reference()
