"""`--network` puts a network file over the recipe of any pair and method."""

from pathlib import Path

import pytest

import udaseg
from tests.support.own_recipes import own_data
from udaseg.errors import RecipeError, UsageError
from udaseg.recipe.library import find_network, find_recipe, list_networks, list_recipes
from udaseg.recipe.load import dump, load
from udaseg.recipe.methods import Staged
from udaseg.recipe.network import CropLimit
from udaseg.recipe.request import Overrides, requested_recipe

NETWORKS = {entry.method: entry.path for entry in list_networks()}
MINE = """
model:
  backbone: resnet18
  output_stride: 8
  weights: random
  batch_norm: train
  head: deeplab_v2
  aspp_dilations: [6]
optimizer:
  kind: adamw
  lr: 1.0e-4
  head_lr_mult: 3
  backbone_lr_mult: 1
  momentum: 0.9
  weight_decay: 0.05
  power: 1
  warmup: 70
crop:
  most: [100, 512]
  multiple: 14
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my net.yaml"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize(
    ("crop", "fitted"),
    [
        ([512, 512], [504, 504]),  # 36 * 14 is the largest multiple that is no larger
        ([360, 480], [350, 476]),
        ([1024, 2048], [518, 1022]),
        ([14, 28], [14, 28]),
        ([13, 15], [13, 14]),  # a crop below one patch stays as it is
    ],
)
def test_a_crop_is_cut_to_the_limit_and_rounded_down_to_the_multiple(
    crop: list[int], fitted: list[int]
) -> None:
    assert CropLimit((518, 1022), 14).fit(crop) == fitted


def test_a_network_replaces_model_optimizer_and_crops_and_nothing_else(mine: Path) -> None:
    before = load(find_recipe("synstreet_camvid/rccr"))
    after = load(find_recipe("synstreet_camvid/rccr"), network=mine)
    assert (after.model.backbone, after.model.head_channels) == ("resnet18", 256)
    assert (after.optimizer.lr, after.optimizer.power, after.optimizer.warmup) == (1e-4, 1, 70)
    assert before.source.crop == (360, 480)
    assert after.source.crop == after.target.crop == (98, 476)
    assert (after.method, after.batch, after.steps) == (before.method, before.batch, before.steps)
    assert after.source.resize == before.source.resize
    assert after.name == "rccr-my_net"
    assert load(text=dump(after)) == after


def test_the_crop_of_a_stage_is_cut_too(mine: Path) -> None:
    path = find_recipe("gta5_cityscapes/spcl_release")
    before, after = load(path).method, load(path, network=mine).method
    assert isinstance(before, Staged)
    assert isinstance(after, Staged)
    own = [stage.target.crop for stage in before.stages if stage.target is not None]
    assert own
    for crop, cut in zip(own, (s.target.crop for s in after.stages if s.target), strict=True):
        assert cut == (min(crop[0], 100) // 14 * 14, min(crop[1], 512) // 14 * 14)


def test_a_later_override_wins_over_the_network(mine: Path) -> None:
    words = ["model.head_channels=9", "source.crop=[50, 60]", "target.crop=[50, 60]", "name=x"]
    recipe = load(find_recipe("toyland/rccr"), overrides=words, network=mine)
    assert (recipe.model.backbone, recipe.model.head_channels) == ("resnet18", 9)
    assert (recipe.source.crop, recipe.name) == ((50, 60), "x")
    assert load(find_recipe("toyland/rccr"), network=mine).model.head_channels == 256


def test_the_warm_up_of_a_network_is_at_most_a_tenth_of_the_steps(mine: Path) -> None:
    def warmup(*words: str) -> int:
        return load(find_recipe("toyland/rccr"), overrides=words, network=mine).optimizer.warmup

    assert warmup() == 50  # of 500 steps
    assert warmup("steps=90") == 9
    assert warmup("steps=9000") == 70
    assert warmup("steps=90", "optimizer.warmup=60") == 60
    spcl = load(find_recipe("toyland/spcl"), network=mine)
    assert spcl.optimizer.warmup == 10  # the shortest stage has 100 of 500 steps


FOLDERS = sorted({entry.folder for entry in list_recipes()})
FAST = "toyland"  # has every method


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "folder",
    [pytest.param(each, marks=[] if each == FAST else pytest.mark.slow) for each in FOLDERS],
)
def test_a_network_fits_every_method_of_every_pair(folder: str, network: str) -> None:
    plain = udaseg.load_recipe("toyland/dacs", network=network)
    for entry in list_recipes():
        if entry.folder == folder:
            recipe = load(entry.path, overrides=own_data(entry.path), network=NETWORKS[network])
            assert recipe.model == plain.model
            assert recipe.name == f"{entry.method}-{network}"


@pytest.mark.parametrize("path", NETWORKS.values(), ids=NETWORKS)
def test_a_network_file_begins_with_its_command_and_a_summary(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == f"# udaseg adapt --network {path.stem}"
    assert second.startswith("# ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  lr: 1.0e-4\n", "  lr: -1\n", r"net\.yaml:11:7: optimizer\.lr: must be above 0"),
        ("  lr: 1.0e-4\n", "", r"net\.yaml:9:1: optimizer\.lr: is missing"),
        ("  multiple: 14", "  multiple: 0", r"crop\.multiple: must be at least 1, got 0"),
        (
            "  multiple: 14",
            "  multiple: 101",
            r"net\.yaml:19:3: crop\.most: must be at least crop\.multiple \(101\) a side, got",
        ),
        ("optimizer:", "optimiser:", r"optimiser: unknown key; did you mean 'optimizer'"),
        ("crop:", "steps: 4\ncrop:", r"steps: unknown key; known keys: model, optimizer, crop"),
        ("model:", "model: 3\nother:", r"model: must be a section"),
    ],
)
def test_a_wrong_network_file_is_refused_with_line_and_reason(
    mine: Path, old: str, new: str, expected: str
) -> None:
    mine.write_text(MINE.replace(old, new, 1))
    with pytest.raises(RecipeError, match=expected):
        load(find_recipe("toyland/rccr"), network=mine)


def test_a_recipe_is_no_network(mine: Path) -> None:
    mine.write_text(dump(load(find_recipe("toyland/rccr"))))
    for given in ("toyland/rccr", mine):
        with pytest.raises(RecipeError, match=f"^{given}: is a recipe, not a network; name it"):
            load(find_recipe("toyland/rccr"), network=find_network(given))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet500", r"unknown 'resnet500'; did you mean 'resnet50'\? choose one of resnet18, "),
        ("'timm:'", r"write a name of timm after timm:, such as timm:convnext_tiny"),
    ],
)
def test_an_unknown_backbone_is_refused_where_it_is_written(
    mine: Path, name: str, expected: str
) -> None:
    mine.write_text(MINE.replace("resnet18", name))
    with pytest.raises(RecipeError, match=rf"^.*net\.yaml:3:3: model\.backbone: {expected}"):
        load(find_recipe("toyland/rccr"), network=mine)


def test_what_contradicts_the_method_is_named(mine: Path) -> None:
    with pytest.raises(RecipeError, match=r"region_size: must be at most 12 cells"):
        load(
            find_recipe("gta5_cityscapes/rccr"),
            overrides=["method.regional.region_size=13"],
            network=mine,
        )


def test_a_network_is_found_by_name_and_by_path(mine: Path) -> None:
    assert find_network("light") == find_network("networks/light.yaml") == NETWORKS["light"]
    assert find_network(mine) == mine
    with pytest.raises(RecipeError, match=r"did you mean 'light'.*available: .*standard"):
        find_network("ligth")
    with pytest.raises(RecipeError, match="is a network; use --network light"):
        find_recipe("networks/light")


def test_the_request_names_both_files() -> None:
    recipe, path = requested_recipe(["toyland/rccr"], Overrides(network="light"), "rccr")
    assert str(path) == f"{find_recipe('toyland/rccr')} with {NETWORKS['light']}"
    assert recipe == udaseg.load_recipe("toyland/rccr", network="light")
    assert recipe.expected is None
    with pytest.raises(UsageError, match="leave out --network"):
        requested_recipe([], Overrides(network="light"), "rccr", resume=Path("run"))


def test_a_recipe_object_takes_a_network() -> None:
    from udaseg.training.train import TrainOptions, everyday_options, read_recipe

    plain = udaseg.load_recipe("toyland/rccr")
    changes = everyday_options(network="light")
    for given in (plain, "toyland/rccr", find_recipe("toyland/rccr")):
        recipe, path = read_recipe(given, changes, {"steps": 8}, TrainOptions())
        assert recipe == udaseg.load_recipe("toyland/rccr", network="light", overrides={"steps": 8})
        assert str(path).endswith(f" with {NETWORKS['light']}")


OWN = {"source": "my_city.yaml", "target": "my_photos/"}


@pytest.mark.parametrize(
    ("method", "options", "gpu", "file", "backbone"),
    [
        ("rccr", {}, True, "standard.yaml", "resnet50"),
        ("rccr", {}, False, "light.yaml", "efficientnet_lite0"),
        ("rccr", {"device": "cuda:1"}, False, "standard.yaml", "resnet50"),
        ("rccr", {"device": "cpu"}, True, "light.yaml", "efficientnet_lite0"),
        ("dacs", {}, True, "dacs.yaml", "resnet50"),
        ("dacs", {}, False, f"dacs.yaml with {NETWORKS['light']}", "efficientnet_lite0"),
        ("rccr", {"network": "light"}, True, f"rccr.yaml with {NETWORKS['light']}", "efficientnet"),
        ("spcl_release", {}, True, "gta5_cityscapes/spcl_release.yaml", "resnet101"),
    ],
)
def test_data_of_the_user_take_a_network_that_suits_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    options: dict[str, str],
    gpu: bool,
    file: str,
    backbone: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("udaseg.recipe.request.may_have_gpu", lambda: True)
    with caplog.at_level("INFO", "udaseg"):
        recipe, path = requested_recipe([], Overrides(**OWN, **options), "rccr", method)
    assert str(path).endswith(file)
    assert recipe.model.backbone.startswith(backbone)
    assert (recipe.source.data, recipe.target.data) == ("my_city.yaml", "my_photos/")
    assert recipe.validation.data is None
    said = "own/" in caplog.text and "choose another network" in caplog.text
    assert said == ("network" not in options and not method.endswith("_release"))


def test_a_source_alone_is_trained_on_and_scored() -> None:
    recipe, path = requested_recipe([], Overrides("my_city", device="cpu"), "source_only")
    assert "own/source_only.yaml with " in str(path)
    assert recipe.target.data == recipe.validation.data == "my_city"
    words = ["validation.data=null", "target.data=photos"]
    recipe, _ = requested_recipe(words, Overrides("my_city", device="cpu"), "source_only")
    assert (recipe.target.data, recipe.validation.data) == ("photos", None)


def test_a_recipe_without_data_says_how_to_give_them() -> None:
    with pytest.raises(
        RecipeError, match=r"source\.data: is missing: .*give it with --source"
    ) as e:
        requested_recipe(["own/rccr"], Overrides(), "rccr")
    assert "target.data: is missing: text; give it with --target" in str(e.value)
