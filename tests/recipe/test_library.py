"""How command-line arguments select a recipe file."""

from pathlib import Path

import pytest

from udaseg.errors import CheckpointError, RecipeError, UsageError
from udaseg.recipe.library import (
    choose_recipe,
    find_recipe,
    list_methods,
    list_networks,
    list_recipes,
    recipes_folder,
)
from udaseg.recipe.load import dump, load
from udaseg.recipe.request import Overrides, requested_recipe, split_arguments, validates_other_data

SHIPPED = recipes_folder() / "gta5_cityscapes" / "rccr.yaml"
PAIRS = {
    "gta5_cityscapes": ("gta5", "cityscapes", ("rccr", "dacs")),
    "gta5_acdc": ("gta5", "acdc", ("rccr",)),
    "synthia_cityscapes": ("synthia", "cityscapes", ("rccr", "spcl")),
    "toyland": ("toyland-day", "toyland-night", ("rccr",)),
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a library of four recipe folders, derived from a shipped recipe."""
    for folder, (source, target, known) in PAIRS.items():
        for method in known:
            path = tmp_path / "recipes" / folder / f"{method}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            overrides = [f"source.data={source}", f"target.data={target}", f"name={method}"]
            text = dump(load(SHIPPED, overrides=overrides))
            path.write_text(f"# udaseg adapt {folder}/{method}\n#\n# About {method}.\n{text}")
    monkeypatch.setattr("udaseg.recipe.library.recipes_folder", lambda: tmp_path / "recipes")
    return tmp_path / "recipes"


def test_the_shipped_recipes_are_listed_with_a_summary() -> None:
    entries = {entry.name: entry for entry in list_recipes()}
    assert entries["gta5_cityscapes/rccr"].path == SHIPPED
    assert not {entry.folder for entry in entries.values()} & {"networks", "datasets"}
    entries |= {entry.name: entry for entry in list_networks()}
    assert {"networks/light", "networks/standard", "own/light"} <= entries.keys()
    for entry in entries.values():
        assert entry.summary
        assert not entry.summary.startswith("udaseg")


@pytest.mark.parametrize(
    ("method", "source", "target", "expected"),
    [
        ("rccr", None, None, "gta5_cityscapes/rccr"),
        ("dacs", None, None, "gta5_cityscapes/dacs"),
        ("rccr", "gta5", "acdc", "gta5_acdc/rccr"),
        ("rccr", None, "acdc", "gta5_acdc/rccr"),
        ("dacs", None, "acdc", "gta5_cityscapes/dacs"),
        ("rccr", "synthia", None, "synthia_cityscapes/rccr"),
        ("rccr", "synthia", "photos", "synthia_cityscapes/rccr"),
        ("rccr", None, "photos", "gta5_cityscapes/rccr"),
        ("rccr", "my_city.yaml", "photos", "gta5_cityscapes/rccr"),
        ("rccr", "toyland-day", "toyland-night", "toyland/rccr"),
        ("spcl", None, None, "synthia_cityscapes/spcl"),
    ],
)
def test_the_recipe_that_fits_the_data_best_is_chosen(
    library: Path, method: str, source: str | None, target: str | None, expected: str
) -> None:
    assert choose_recipe(method, source, target) == library / f"{expected}.yaml"


def test_an_unknown_method_is_refused_with_the_known_ones(library: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'rccr'.*available: dacs, rccr, spcl"):
        choose_recipe("rcrc")


def test_methods_are_listed_once_each(library: Path) -> None:
    assert list_methods() == {name: f"About {name}." for name in ("dacs", "rccr", "spcl")}


@pytest.mark.parametrize(
    ("source", "target", "folder"),
    [
        ("my_city.yaml", "photos", "own"),
        ("toyland", "photos", "toyland"),
        ("my_city.yaml", "cityscapes", "gta5_cityscapes"),
        (None, "photos", "gta5_cityscapes"),
        ("my_city.yaml", None, "gta5_cityscapes"),
    ],
)
def test_own_recipes_are_for_a_source_and_a_target_that_no_recipe_has(
    source: str | None, target: str | None, folder: str
) -> None:
    assert choose_recipe("rccr", source, target).parent.name == folder
    assert not {"light", "standard"} & list_methods().keys()


def test_a_recipe_is_found_by_path_and_by_name(library: Path, tmp_path: Path) -> None:
    path = library / "toyland" / "rccr.yaml"
    assert find_recipe(str(path)) == path
    assert find_recipe("toyland/rccr") == path
    assert find_recipe("toyland/rccr.yaml") == path


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("toylnd/rccr", "did you mean 'toyland/rccr'"),
        ("rccr", "did you mean --method rccr, or a recipe such as gta5_.*/rccr"),
        ("rcrc", "did you mean --method rccr, or a recipe such as gta5_.*/rccr"),
        ("quite/else", "`udaseg recipes ls`"),
        ("x" * 5000, "`udaseg recipes ls`"),
        ("a\0b", "`udaseg recipes ls`"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_way_on(
    library: Path, word: str, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        find_recipe(word)


def test_a_run_folder_as_recipe_is_sent_to_resume(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match="--resume"):
        find_recipe(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, [])),
        (["a.yaml"], ("a.yaml", [])),
        (["steps=5", "a.yaml", "seed=1"], ("a.yaml", ["steps=5", "seed=1"])),
        (["runs/a=b.yaml"], ("runs/a=b.yaml", [])),
        (["source.data=x/y.yaml"], (None, ["source.data=x/y.yaml"])),
    ],
)
def test_a_word_with_an_equals_sign_is_an_override(
    words: list[str], expected: tuple[str | None, list[str]]
) -> None:
    assert split_arguments(words) == expected


def test_two_recipes_are_refused() -> None:
    with pytest.raises(UsageError, match="at most one RECIPE"):
        split_arguments(["a.yaml", "b.yaml"])


@pytest.mark.parametrize(
    ("overrides", "off"),
    [
        ([], False),
        (["target.data=cityscapes"], False),
        (["target.data=photos"], True),
        (["source.data=city"], False),
        (["source.data=city", "method={kind: source_only}"], True),
        (["target.data=photos", "validation.split=val"], True),
        (["target.data=photos", "validation.data=photos"], False),
        (["target.data=photos", "validation={data: photos, split: val, resize: null}"], False),
    ],
)
def test_a_target_of_the_users_own_is_not_scored_on_the_recipes(
    overrides: list[str], off: bool
) -> None:
    recipe = load(SHIPPED, overrides=overrides)
    assert validates_other_data(recipe, ("gta5", "cityscapes"), overrides) == off


def test_an_oracle_is_scored_on_the_set_that_it_trains_on() -> None:
    everyday = Overrides(source="cityscapes", target="cityscapes")
    recipe, path = requested_recipe([], everyday, "source_only")
    assert path.parent.name == "cityscapes_acdc"
    assert (recipe.validation.data, recipe.validation.split) == ("cityscapes", "val")
    assert recipe.validation.resize == recipe.source.resize == (512, 1024)  # ACDC has another size
    unscored, _ = requested_recipe(["validation.data=null"], everyday, "source_only")
    assert unscored.validation.data is None


def test_synthia_with_either_number_of_outputs_has_its_own_release() -> None:
    for source in ("synthia", "synthia19"):
        path = choose_recipe("rccr_release", source, "cityscapes")
        assert path.parent.name == "synthia_cityscapes"
    assert load(path).source.data == "synthia19"


def test_everyday_options_change_the_recipe(library: Path) -> None:
    everyday = Overrides("no", "my photos: 1", 7, 9, 3, "cpu", "bf16", 0)
    recipe, path = requested_recipe(["optimizer.lr=1e-5"], everyday, "rccr")
    assert path == library / "gta5_cityscapes" / "rccr.yaml"
    assert (recipe.source.data, recipe.target.data) == ("no", "my photos: 1")
    assert (recipe.seed, recipe.steps, recipe.batch.source, recipe.batch.target) == (7, 9, 3, 3)
    machine = recipe.machine
    assert (machine.device, machine.precision, machine.workers) == ("cpu", "bf16", 0)
    assert recipe.optimizer.lr == 1e-5
    assert recipe.validation.data is None


def test_an_option_and_an_override_that_contradict_are_refused(library: Path) -> None:
    with pytest.raises(RecipeError, match="contradicts `steps=9`"):
        requested_recipe(["steps=5"], Overrides(steps=9), "rccr")


def test_method_beside_a_shipped_recipe_takes_its_neighbour(library: Path) -> None:
    _, path = requested_recipe(["synthia_cityscapes/rccr"], Overrides(), "rccr", "spcl")
    assert path == library / "synthia_cityscapes" / "spcl.yaml"
    with pytest.raises(UsageError, match="no method 'dacs' in synthia_cityscapes"):
        requested_recipe(["synthia_cityscapes/rccr"], Overrides(), "rccr", "dacs")


def test_method_beside_a_file_of_ones_own_is_refused(library: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(SHIPPED.read_bytes())
    with pytest.raises(UsageError, match="leave out --method"):
        requested_recipe([str(mine)], Overrides(), "rccr", "dacs")


def test_resume_takes_the_recipe_of_the_run(library: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match="not a run folder"):
        requested_recipe([], Overrides(), "rccr", resume=run)
    written = load(SHIPPED, overrides=["steps=5", "target.data=photos", "validation.data=null"])
    (run / "recipe.yaml").write_text(dump(written))
    assert requested_recipe([], Overrides(), "rccr", resume=run) == (written, run / "recipe.yaml")
    recipe, _ = requested_recipe(["machine.workers=3"], Overrides(), "rccr", resume=run)
    assert recipe.machine.workers == 3
    for words, method in ((["toyland/rccr"], None), ([], "dacs")):
        with pytest.raises(UsageError, match="leave out"):
            requested_recipe(words, Overrides(), "rccr", method, run)
