"""Values and combinations of a sweep, and what they are called."""

from pathlib import Path

import pytest

from udaseg.errors import RecipeError, UsageError
from udaseg.experiments.settings import settings_of, split_values
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import load

REGIONAL, STAGE = "method.regional", "method.stages.contrast.objective.prototypes"


def recipe(name):
    return load(find_recipe(name)), Path(name)


def combined(values=(), each=(), recipes=("toyland/rccr",)):
    found = settings_of(
        [recipe(name) for name in recipes], split_values(values), split_values(each)
    )
    return {setting.name: setting for setting in found}


def test_values_are_separated_by_the_commas_outside_of_brackets_and_quotes():
    words = ["a=1,2", "b=[1, 2],[3,4]", "c={x: [1,2], y: 3}", 'd=\'x,y\',"z,\\",w"', "e=it's"]
    assert split_values(words) == {
        "a": ["1", "2"],
        "b": ["[1, 2]", "[3,4]"],
        "c": ["{x: [1,2], y: 3}"],
        "d": ["'x,y'", '"z,\\",w"'],
        "e": ["it's"],
    }
    assert split_values({"a": [1, 0.5], "b": ["no"], "c": [None, [1, 2]]}) == {
        "a": ["1", "0.5"],
        "b": ['"no"'],
        "c": ["null", "[1, 2]"],
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a"], "a: give each key once, as KEY=VALUE or KEY=VALUE,VALUE"),
        (["a=1", "a=2"], "a=2: give each key once"),
        (["a=1,1"], "a: give one or more different values"),
        ({"a": []}, "a: give one or more different values"),
        ({"a": [object()]}, "plain value"),
    ],
)
def test_wrong_values_are_refused(values, expected):
    with pytest.raises(UsageError, match=expected):
        split_values(values)


def test_all_values_are_combined_and_named_by_the_last_words_of_their_keys():
    found = combined([f"{REGIONAL}.temperature=0.1,1", "optimizer.lr=1e-4,1e-3", "steps=7"])
    assert list(found) == [
        "temperature=0.1 lr=1e-4",
        "temperature=0.1 lr=1e-3",
        "temperature=1 lr=1e-4",
        "temperature=1 lr=1e-3",
    ]
    last = found["temperature=1 lr=1e-3"]
    assert (last.recipe.method.regional.temperature, last.recipe.optimizer.lr) == (1, 1e-3)
    assert {each.recipe.steps for each in found.values()} == {7}
    assert last.folder == "temperature=1,lr=1e-3"
    same_word = combined(["optimizer.momentum=0.1,0.2", "method.teacher.momentum=0.5,0.9"])
    assert next(iter(same_word)) == "optimizer.momentum=0.1 teacher.momentum=0.5"


def test_changes_are_made_one_at_a_time_beside_the_recipe_as_it_is():
    found = combined(each=[f"{REGIONAL}.negative_sampling=false", f"{REGIONAL}.temperature=1,2"])
    assert list(found) == ["rccr", "negative_sampling=false", "temperature=1", "temperature=2"]
    plain = load(find_recipe("toyland/rccr"))
    assert found["rccr"].recipe == plain
    changed = found["negative_sampling=false"].recipe.method.regional
    assert (changed.negative_sampling, changed.temperature) == (
        False,
        plain.method.regional.temperature,
    )


def test_recipes_are_combined_too_and_a_stage_is_named():
    found = combined(["steps=5,6"], recipes=("toyland/source_only", "toyland/dacs"))
    assert list(found) == [
        "source_only steps=5",
        "source_only steps=6",
        "dacs steps=5",
        "dacs steps=6",
    ]
    assert list(combined(recipes=("toyland/source_only", "toyland/dacs"))) == [
        "source_only",
        "dacs",
    ]
    spcl = combined([f"{STAGE}.temperature=0.1,100"], recipes=("toyland/spcl",))
    stages = spcl["temperature=100"].recipe.method.stages
    assert [
        stage.objective.prototypes.temperature for stage in stages if stage.name == "contrast"
    ] == [100]


def test_a_folder_has_a_plain_name_of_its_own():
    found = combined({"source.data": ["a/b", "a_b"], "target.flip": [False]})
    folders = [setting.folder for setting in found.values()]
    assert folders[1] == "data=a_b"
    assert folders[0].startswith("data=a_b-")
    long = combined({"source.data": ["x" * 200, "x" * 201]})
    assert [len(setting.folder) < 120 for setting in long.values()] == [True, True]


def test_a_wrong_combination_is_refused_before_any_run_and_repeated_names_too():
    with pytest.raises(RecipeError, match=r"override method\.regional\.temperature=-1"):
        combined([f"{REGIONAL}.temperature=1,-1"])
    with pytest.raises(UsageError, match="recipes of different names"):
        combined(recipes=("toyland/rccr", "gta5_cityscapes/rccr"))


@pytest.mark.parametrize(
    ("values", "each", "expected"),
    [
        (["optimizer.lr=0.01,1e-2"], (), "lr=1e-2: has the same settings as lr=0.01"),
        ((), [f"{REGIONAL}.negative_sampling=true"], "has the same settings as rccr; leave one"),
        (["name=x,y"], (), "name=y: has the same settings as name=x"),
        (["seed=0,1"], (), "seed: give all seeds of a sweep with --seeds"),
        (["seed=5"], (), "seed: give all seeds of a sweep with --seeds"),
        ((), ["seed=5"], "seed: give all seeds of a sweep with --seeds"),
    ],
)
def test_settings_that_would_train_the_same_network_twice_are_refused(values, each, expected):
    with pytest.raises(UsageError, match=expected):
        combined(values, each)
