"""Overrides inside a stage, by its name, and of the kind of a section."""

from pathlib import Path

import pytest
import yaml

from udaseg.errors import RecipeError
from udaseg.recipe.load import dump, load
from udaseg.recipe.request import load_recipe
from udaseg.sizes import ShortSide

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "gta5_cityscapes"
SPCL, RCCR = RECIPES / "spcl.yaml", RECIPES / "rccr.yaml"
WARM_UP, CONTRAST = "method.stages.warm_up", "method.stages.contrast"


def plain(path, *overrides):
    return yaml.safe_load(dump(load(path, overrides=overrides)))


def refused(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(path, overrides=overrides)
    return str(caught.value)


def test_a_key_of_a_stage_is_set_by_the_name_of_the_stage():
    expected = plain(SPCL)
    expected["method"]["stages"][1]["objective"]["prototypes"]["temperature"] = 100
    expected["method"]["stages"][2]["pseudo_labels"]["cap"] = 0.5
    changes = (
        f"{CONTRAST}.objective.prototypes.temperature=100",
        "method.stages.self_distillation.pseudo_labels.cap=0.5",
    )
    assert plain(SPCL, *changes) == expected
    changed = load(SPCL, overrides=changes)
    assert load(text=dump(changed)) == changed
    by_name = {change.partition("=")[0]: float(change.partition("=")[2]) for change in changes}
    assert load_recipe(SPCL, overrides=by_name) == changed


def test_a_section_that_the_stage_lacks_is_begun():
    stages = plain(SPCL, "method.stages.self_distillation.source_sampling=null", "steps=7")
    assert stages["method"]["stages"] == plain(SPCL)["method"]["stages"]
    target = "{resize: null, crop: [64, 64], scale: [1, 1], flip: true, batch: 2}"
    whole = plain(SPCL, f"method.stages.self_distillation.target={target}")
    assert whole["method"]["stages"][2]["target"]["crop"] == [64, 64]
    message = refused(SPCL, "method.stages.self_distillation.target.batch=2")
    assert "method.stages[2].target.crop: is missing" in message


def test_a_stage_is_replaced_or_left_out():
    expected = plain(SPCL)
    del expected["method"]["stages"][2]
    expected["method"]["stages"][1]["share"] = 0.6
    assert plain(SPCL, "method.stages.self_distillation=null", f"{CONTRAST}.share=0.6") == expected
    stage = (
        "{name: first, share: 0.4, lr_mult: 1, schedule_stop: 1, objective: {kind: source_only}}"
    )
    assert plain(SPCL, f"{WARM_UP}={stage}")["method"]["stages"][0]["name"] == "first"


def test_a_source_only_warm_up_is_one_word():
    expected = plain(SPCL)
    expected["method"]["stages"][0]["objective"] = {
        "kind": "source_only",
        "target_statistics": 0,
    }
    assert plain(SPCL, f"{WARM_UP}.objective.kind=source_only") == expected


def test_a_new_kind_drops_what_only_the_old_one_has_and_nothing_that_is_given():
    method = plain(RCCR, "method.kind=source_only")["method"]
    assert method == {"kind": "source_only", "target_statistics": 0}
    entropy = plain(SPCL, f"{WARM_UP}.objective.kind=entropy")["method"]["stages"][0]["objective"]
    assert (entropy["kind"], entropy["weight"]) == ("entropy", 0.001)
    both = (f"{WARM_UP}.objective.sees=softmax", f"{WARM_UP}.objective.kind=source_only")
    assert "sees: unknown key of source_only" in refused(SPCL, *both)
    assert plain(RCCR, "optimizer.kind=adamw")["optimizer"] == {
        **plain(RCCR)["optimizer"],
        "kind": "adamw",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "method.stages.contrst.share=0.1",
            "method.stages: has no 'contrst', only warm_up, contrast, self_distillation; did you "
            "mean 'contrast'?",
        ),
        ("method.stages.1.share=0.1", "method.stages: has no '1', only warm_up"),
        ("method.stages.fourth=null", "method.stages: has no 'fourth'"),
        (f"{CONTRAST}.share.x=1", f"{CONTRAST}.share is a value, not a section"),
        (f"{CONTRAST}.shar=1", "shar: unknown key; did you mean 'share'?"),
        (
            "method.prototypes.temperature=1",
            "unknown key of staged; did you mean 'method.stages.NAME.objective.prototypes'?",
        ),
        (
            f"{CONTRAST}.discriminator_lr=1",
            "unknown key; did you mean 'method.stages.NAME.objective.discriminator_lr'?",
        ),
        (
            f"{CONTRAST}.share=2",
            "must be shares that add up to 1 (method.stages.warm_up.share), got 2.6",
        ),
        ("method.stages.warm_up=null", "(method.stages.contrast.share), got 0.6\n"),
        (f"{CONTRAST}.share=-2", "method.stages[1].share: must be above 0"),
        ("source.crop.first=1", "source.crop: must be a list of 2 whole numbers, got a section"),
        (f"{CONTRAST}.objective.kind=prototypes", "must be one of"),
    ],
)
def test_a_wrong_key_of_a_stage_is_refused_and_quoted(override, expected):
    message = refused(SPCL, override)
    assert expected in message


def test_an_item_without_a_name_is_not_addressed_and_a_list_of_values_becomes_a_section():
    sizes = "source.resize_each=[{short_side: 64}, null]"
    text = dump(load(SPCL, overrides=["source.data=[a, b]", sizes]))
    with pytest.raises(RecipeError, match=r"resize_each: is a list without names"):
        load(SPCL, text=text, overrides=["source.resize_each.first=1"])
    recipe = load(SPCL, overrides=["target.resize=[64, 64]"])
    recipe = load(SPCL, text=dump(recipe), overrides=["target.resize.short_side=48"])
    assert recipe.target.resize == ShortSide(48)


def test_two_overrides_of_a_stage_that_contradict_are_refused():
    message = refused(SPCL, f"{CONTRAST}=null", f"{CONTRAST}.share=0.1")
    assert "contradicts" in message
