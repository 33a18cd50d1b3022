"""Regularizers and backbones of other packages in a recipe, and the packages that it needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Len

from tests.support.entry_points import Gram, GramSpec, install
from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.recipe.load import dump, from_dict, load, to_dict
from udaseg.recipe.methods import built_in_regularizers, regularizer_specs
from udaseg.recipe.stages import numeric_settings, recipe_digest

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "toyland"
DACS = (RECIPES / "dacs.yaml").read_text()
GRAM = """  regularizers:
    gram:
      weight: 0.5
      kind: cosine
"""
WITH_GRAM = DACS.replace("  mix_weight:", f"{GRAM}  mix_weight:")
AT = WITH_GRAM.splitlines().index("    gram:") + 1
REGULARIZER, BACKBONE = "udaseg.regularizers", "udaseg.backbones"


@pytest.fixture
def installed(monkeypatch):
    return install(monkeypatch, {(REGULARIZER, "gram"): Gram, (BACKBONE, "sick"): object})


def refused(text, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load(Path("my.yaml"), text=text, overrides=overrides)
    return str(caught.value)


def test_settings_of_a_plug_in_are_read_and_its_package_is_noted(installed):
    recipe = load(text=WITH_GRAM)
    assert recipe.method.regularizers == {"gram": GramSpec(0.5, "cosine")}
    assert recipe.packages == ("udaseg-gram",)
    assert regularizer_specs(recipe.method) == {"gram": GramSpec(0.5, "cosine")}
    both = load(text=WITH_GRAM, overrides=["packages=[torch]"])
    assert both.packages == ("torch", "udaseg-gram")


def test_a_plug_in_is_written_stored_and_counts_for_the_numbers(installed):
    recipe, plain = load(text=WITH_GRAM), load(text=DACS)
    written = dump(recipe)
    assert "packages: [udaseg-gram]" in written
    assert "    gram:\n      kind: cosine\n      weight: 0.5\n" in written
    assert load(text=written) == recipe
    assert from_dict(to_dict(recipe)) == recipe
    assert numeric_settings(recipe)["method"]["regularizers"]["gram"]["weight"] == 0.5
    assert recipe_digest(recipe) != recipe_digest(plain)
    assert "packages" not in dump(plain)
    assert "regularizers" not in dump(plain)


def test_overrides_reach_a_plug_in(installed):
    recipe = load(text=WITH_GRAM, overrides=["method.regularizers.gram.weight=0.1"])
    assert recipe.method.regularizers["gram"].weight == 0.1
    words = ["method.regularizers.gram.weight=0.1", "method.regularizers.gram.kind=linear"]
    assert load(text=DACS, overrides=words).method.regularizers["gram"].kind == "linear"
    assert load(text=WITH_GRAM, overrides=["method.regularizers.gram=null"]) == load(text=DACS)


@pytest.mark.parametrize(
    ("wrong", "line", "expected"),
    [
        (("weight: 0.5", "weight: -1"), 1, "gram.weight: must be at least 0, got -1"),
        (("weight: 0.5", "weigth: 1"), 1, "gram.weigth: unknown key; did you mean 'weight'?"),
        (("weight: 0.5", "layers: [2, 0]\n      weight: 1"), 1, "gram.layers[1]: must be at least"),
        (("weight: 0.5", "momentum: 2\n      weight: 1"), 1, "gram.momentum: must be in [0, 1]"),
        (("cosine", "cosinus"), 2, "gram.kind: must be one of linear, cosine, got cosinus; did"),
        (("      kind: cosine\n", ""), 0, "gram.kind: is missing: one of linear, cosine"),
    ],
)
def test_a_wrong_setting_of_a_plug_in_is_refused_with_its_line(installed, wrong, line, expected):
    message = refused(WITH_GRAM.replace(*wrong))
    assert message.startswith(f"my.yaml:{AT + line}:")
    assert f": method.regularizers.{expected}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gramm", "; did you mean 'gram'?"),
        ("regional", "; a built-in one is written as method.regional"),
        ("prototype", "; a built-in one is written as method.prototypes"),
        ("xyz", ""),
    ],
)
def test_a_name_that_nobody_has_is_refused_with_its_line(installed, name, hint):
    message = refused(WITH_GRAM.replace("    gram:", f"    {name}:"))
    key = f"method.regularizers.{name}"
    assert message == f"my.yaml:{AT}:5: {key}: no installed package has this regularizer{hint}"


def test_regularizers_of_packages_are_a_section(installed):
    assert "must be a section, got a list" in refused(DACS, ["method.regularizers=[gram]"])
    assert "must be a section, got null" in refused(DACS, ["method.regularizers=null"])


def test_entry_points_are_read_only_for_plug_ins(installed):
    for path in RECIPES.glob("*.yaml"):
        load(path)
        load(path, overrides=["model.backbone='timm:resnet18'"])
    assert installed == []
    load(text=WITH_GRAM)
    assert set(installed) == {REGULARIZER}


def test_the_package_of_a_backbone_is_noted_and_an_unknown_one_is_refused(installed):
    assert load(text=DACS, overrides=["model.backbone=sick"]).packages == ("udaseg-gram",)
    message = refused(DACS, ["model.backbone=sik"])
    assert "model.backbone: unknown 'sik'; did you mean 'sick'? choose one of resnet18" in message


def test_a_package_that_is_missing_is_named_at_its_line_and_its_names_are_no_second_error(
    monkeypatch,
):
    install(monkeypatch, {})
    text = f"packages:\n  - torch\n  - udaseg-gram\n{WITH_GRAM}"
    assert refused(text) == (
        "my.yaml:3:5: packages: the recipe needs the package 'udaseg-gram', which is not "
        "installed; install it"
    )
    both = refused(text, ["steps=many"]).splitlines()
    assert len(both) == 2
    assert both[0].startswith("my.yaml:3:5: packages: ")
    with pytest.raises(RecipeError, match=r"^run/step\.pt: packages: the recipe needs"):
        from_dict({**to_dict(load(text=DACS)), "packages": ["udaseg-gram"]}, "run/step.pt")


@pytest.mark.parametrize("word", ["x; rm -rf", "-e", "../x", "https://x/y"])
def test_only_the_name_of_a_package_is_shown_in_a_command(monkeypatch, word):
    install(monkeypatch, {})
    message = refused(DACS, [f"packages=['{word}']"])
    assert "must be the name of a package" in message
    assert "pip install" not in message


@dataclass
class Thawed:
    weight: float


@dataclass(frozen=True)
class Strange:
    start: set[int] = frozenset()


@pytest.mark.parametrize("section", [None, Thawed, GramSpec(1, "linear"), dict, Strange])
def test_a_regularizer_without_frozen_settings_is_a_fault_of_its_package(monkeypatch, section):
    install(monkeypatch, {(REGULARIZER, "gram"): type("Other", (), {"spec_class": section})})
    with pytest.raises(EnvironmentFault, match="package udaseg-gram: the regularizer 'gram'"):
        load(text=WITH_GRAM)


def test_built_in_regularizers_come_first_in_the_order_of_their_fields(installed):
    assert built_in_regularizers() == (*("regional", "prototypes", "semantic", "feature_distance"),)
    both = load(
        RECIPES / "rccr_spcl.yaml",
        overrides=["method.regularizers={gram: {weight: 1, kind: linear}}"],
    )
    assert list(regularizer_specs(both.method)) == ["regional", "prototypes", "gram"]
    assert regularizer_specs(load(text=DACS).method) == {}


def test_only_one_regularizer_has_a_projector(installed):
    semantic = to_dict(load(RECIPES / "sepico.yaml"))["method"]["semantic"]
    recipe = load(RECIPES / "rccr.yaml")
    values = to_dict(recipe)
    values["method"]["semantic"] = semantic
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    pair = "must be used without regional, which has its own projector, got both"
    assert str(caught.value) == f"recipe: method.semantic: {pair}"
    projector = "projector: {channels: 8, trainable: true}"
    section = f"method.regularizers.gram={{weight: 1, kind: linear, {projector}}}"
    with pytest.raises(RecipeError, match=f"method.regularizers.gram: {pair}"):
        load(RECIPES / "rccr.yaml", overrides=[section])
    assert load(text=DACS, overrides=[section]).packages == ("udaseg-gram",)


def test_the_projector_of_semantic_contrast_is_trainable():
    spec = load(RECIPES / "sepico.yaml").method.semantic
    assert spec.projector.trainable
    assert replace(spec, channels=7).projector.channels == 7


@dataclass(frozen=True)
class MixedSpec:
    level: Literal["auto", 8]
    names: Annotated[tuple[str, ...], Len(1, 3)] = ("a",)

    def __post_init__(self):
        if self.level == "auto" and self.names == ("b",):
            raise ValueError("auto and b do not fit")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("level: aut", "level: must be one of auto, 8, got aut; did you mean 'auto'?"),
        ("level: 8.0", "must be one of auto, 8, got 8.0, which YAML reads as a number"),
        ("level: 8, names: []", "names: must have 1 to 3 items, got 0"),
        ("level: auto, names: [b]", "mixed: auto and b do not fit"),
    ],
)
def test_settings_of_a_plug_in_of_any_type_are_refused_in_a_sentence(
    monkeypatch, settings, expected
):
    plugin = type("Mixed", (), {"spec_class": MixedSpec})
    install(monkeypatch, {(REGULARIZER, "mixed"): plugin})
    message = refused(DACS, [f"method.regularizers.mixed={{{settings}}}"])
    assert message.endswith(expected)
