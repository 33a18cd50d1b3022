"""Every shipped recipe loads, states its command, builds a small network, and makes one step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.own_recipes import own_data
from tests.support.toy import toy_pair, toy_root
from udaseg.data.loading.pseudo_labels import write_pseudo_label
from udaseg.distributed import resolve_device
from udaseg.errors import EnvironmentFault
from udaseg.methods.build import build_objective
from udaseg.recipe.library import list_networks, list_recipes, recipes_folder
from udaseg.recipe.load import load as load_file
from udaseg.recipe.methods import SelfTraining, Staged, StageTarget
from udaseg.recipe.schema import BatchSize, Domain, Machine, RareClass, Recipe
from udaseg.recipe.stages import adapts, stages_of
from udaseg.signals import StopSignal
from udaseg.training.loop import run_steps
from udaseg.training.optimizer import build_optimizer
from udaseg.training.setup import build_setup

FOLDER = recipes_folder()
FILES = [entry.path for entry in list_recipes()]
NAMES = [f"{path.parent.name}/{path.stem}" for path in FILES]
OWN_NETWORKS = {"light": "light", "standard": "standard", "foundation": "dinov2_small"}
"""The recipes of `own/` that have the network of a file; all but `foundation` are `rccr`."""
RARE_CLASS_METHODS = {"daformer", "mic"}
"""Rare-class sampling is a part of these methods, but a setting of the source."""
QUIRKS_OF_A_RELEASE = {
    "optimizer.backbone_lr_mult",
    "optimizer.repeated",
    "model.align_corners",
    "model.aspp_dilations",
    "model.ceil_pool",
    "model.first_dilation",
    "source.data",
    "source.resampling",
    "target.resize",
    "target.resampling",
    *("steps", "source.crop", "target.crop", "batch.source", "batch.target"),
    *("source.resize", "source.flip", "source.sampling", "target.flip", "validation.resize"),
    *("source.rare_class.min_pixels", "source.rare_class.min_crop_pixels", "model.batch_norm"),
    *(f"optimizer.{name}" for name in ("kind", "lr", "weight_decay", "power", "warmup")),
}


def load(path):
    return load_file(path, overrides=own_data(path))


def small(recipe: Recipe, backbone: str = "resnet18") -> Recipe:
    """Return the recipe with a light backbone, tiny crops and one step, which is not warmed up."""

    def cut(domain: Domain) -> Domain:
        rare = RareClass(min_pixels=30, min_crop_pixels=10)
        return replace(domain, resize=None, crop=(64, 64), rare_class=rare)

    method = recipe.method
    if isinstance(method, Staged):
        stages = [
            replace(stage, target=None if stage.target is None else _cut(stage.target))
            for stage in method.stages
        ]
        method = replace(method, stages=tuple(stages))
    if isinstance(method, SelfTraining) and method.feature_distance is not None:
        distance = replace(
            method.feature_distance, classes=None
        )  # those of a pair are not toyland's
        method = replace(method, feature_distance=distance)
    return replace(
        recipe,
        method=method,
        steps=5 if isinstance(method, Staged) else 1,
        source=cut(recipe.source),
        target=cut(recipe.target),
        batch=BatchSize(2, 2),
        model=replace(recipe.model, backbone=backbone, weights="random", output_stride=16),
        optimizer=replace(recipe.optimizer, warmup=0),
        machine=Machine(device="cpu", workers=0),
    )


def _cut(target: StageTarget) -> StageTarget:
    return replace(target, resize=None, crop=(64, 64), batch=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy_pair(toy_root(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_recipe_begins_with_its_command_and_is_named_like_its_file(path):
    first, second = path.read_text().splitlines()[:2]
    recipe = load(path)
    verb = "adapt" if adapts(recipe) else "train"
    data = " --source my_city.yaml --target my_photos/" * (path.parent.name == "own")
    assert first == f"# udaseg {verb} {path.parent.name}/{path.stem}{data}"
    assert second.startswith("# ")
    assert recipe.name == path.stem


# recipes of one method differ between folders in their data and sizes only
FAST = {"gta5_cityscapes"}
STEPPED = [
    pytest.param(path, id=name, marks=[] if path.parent.name in FAST else pytest.mark.slow)
    for path, name in zip(FILES, NAMES, strict=True)
]


@pytest.mark.parametrize("path", STEPPED)
def test_a_recipe_builds_small_and_each_of_its_stages_steps_once(path, pair, tmp_path):
    _step_each_stage(small(load(path)), pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dinov2_small", "dinov2_large_lora", "convnext_small"])
@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "toyland"])
def test_each_method_steps_with_each_kind_of_network(path, network, pair, tmp_path):
    files = {entry.method: entry.path for entry in list_networks()}
    recipe = load_file(path, network=files[network])
    light = "timm:test_convnext" if network == "convnext_small" else "timm:test_vit"
    _step_each_stage(small(recipe, light), pair, tmp_path)


def _step_each_stage(recipe, pair, tmp_path):
    source, target = pair
    for stage in stages_of(recipe):
        labels = None
        if stage.pseudo_labels is not None:
            labels = tmp_path
            for sample in target.split("train"):
                write_pseudo_label(labels, sample, np.zeros((64, 128), np.uint8))
        run = build_setup(
            recipe, source, target if adapts(recipe) else None, stage=stage, pseudo_labels=labels
        )
        _step_once(run, stage)


def _step_once(run, stage):
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    reports = []
    with StopSignal() as stop:
        first = stage.end - 1
        run_steps(run, first=first, on_step=lambda _, report: reports.append(report), stop=stop)
    assert len(reports) == 1
    assert torch.isfinite(reports[0].total)
    trained = {
        name
        for group in run.optimizer.state_dict()["param_groups"]
        for name in group["param_names"]
    }
    for name, parameter in run.objective.student.named_parameters():
        moved = not torch.equal(before[f"student.{name}"], parameter)
        assert (name in trained) == parameter.requires_grad
        # a head has no gradient before the contrast starts
        still = parameter.grad is None or not parameter.grad.any()
        assert moved or not parameter.requires_grad or still, name


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: p.name)
def test_recipes_of_a_folder_agree_on_all_but_name_and_method(folder):
    recipes = {path.stem: load(path) for path in FILES if path.parent == folder}
    plain = {
        name: _leaves(replace(recipe, name="", method=recipes["source_only"].method, expected=None))
        for name, recipe in recipes.items()
    }
    for name, leaves in plain.items():
        allowed = QUIRKS_OF_A_RELEASE if name.endswith("_release") else set()
        different = {key for key in leaves if leaves[key] != plain["source_only"][key]}
        if name in RARE_CLASS_METHODS:
            allowed = {key for key in leaves if key.startswith("source.rare_class.")}
            allowed |= {"source.sampling"}
            assert leaves["source.sampling"] == "rare_class"
        if folder.name == "own" and name in OWN_NETWORKS:
            allowed |= {key for key in leaves if key.startswith(("model.", "optimizer."))}
            allowed |= {"source.crop", "target.crop", "steps"}
        assert different <= allowed, f"{name}: {different}"


@pytest.mark.parametrize(("name", "network"), OWN_NETWORKS.items())
def test_a_network_of_own_is_rccr_or_foundation_with_that_network(name, network):
    own = FOLDER / "own" / "rccr.yaml"
    files = {entry.method: entry.path for entry in list_networks()}
    rccr = load_file(own, overrides=own_data(own), network=files[network])
    recipe = load(FOLDER / "own" / f"{name}.yaml")
    if name == "foundation":  # its method is compared with other folders below
        rccr = replace(rccr, method=recipe.method)
    assert replace(recipe, steps=rccr.steps, name=rccr.name) == rccr


@pytest.mark.parametrize("name", sorted({*RARE_CLASS_METHODS, "foundation"}))
def test_a_method_is_the_same_in_each_folder_of_long_runs_but_for_the_rows_of_cityscapes(name):
    methods = []
    for folder in ("gta5_cityscapes", "synthia_cityscapes", "cityscapes_acdc", "own"):
        leaves = _leaves(load(FOLDER / folder / f"{name}.yaml").method)
        leaves.pop("mixing.ignore_rows")
        methods.append(leaves)
    assert methods == [methods[0]] * len(methods)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "mic"], ids=str)
def test_mic_is_daformer_with_masked_images(path):
    mic, daformer = load(path), load(path.with_name("daformer.yaml"))
    # a sixteenth of the height, as 64 of 1024 and 32 of 512 in MIC
    assert mic.method.masking.size == pytest.approx(mic.target.crop[0] / 16, rel=0.1)
    method = replace(mic.method, masking=None)
    assert replace(mic, name="daformer", method=method) == daformer


def _leaves(value: object, prefix: str = "") -> dict[str, object]:
    if hasattr(value, "__dataclass_fields__"):
        leaves: dict[str, object] = {}
        for key in value.__dataclass_fields__:
            leaves |= _leaves(getattr(value, key), f"{prefix}.{key}" if prefix else key)
        return leaves
    return {prefix: value}


@pytest.mark.parametrize("trainable", [True, False])
def test_the_projector_is_in_the_optimiser_exactly_when_it_is_trainable(trainable):
    recipe = small(load(FOLDER / "toyland" / "rccr.yaml"))
    method = replace(
        recipe.method,
        regional=replace(
            recipe.method.regional,
            projector=replace(recipe.method.regional.projector, trainable=trainable),
        ),
    )
    objective = build_objective(replace(recipe, method=method), 5)
    trainer = build_optimizer(replace(recipe, method=method), objective)
    held = {id(part) for group in trainer.param_groups for part in group["params"]}
    assert all((id(part) in held) == trainable for part in objective.student.projector.parameters())


def test_learning_rates_are_the_recipes():
    recipe = small(load(FOLDER / "gta5_cityscapes" / "rccr_release.yaml"))
    trainer = build_optimizer(recipe, build_objective(recipe, 19))
    rates = {group["name"]: (group["base_lr"], group["times"]) for group in trainer.param_groups}
    assert rates == {
        "backbone": (2.5e-4, 1),
        "backbone_3": (2.5e-4, 3),
        "backbone_4": (2.5e-4, 4),
        "head": (pytest.approx(2.5e-3), 1),
    }


def test_a_forgotten_parameter_is_a_fault_of_ours_that_is_noticed():
    recipe = small(load(FOLDER / "toyland" / "dacs.yaml"))
    objective = build_objective(recipe, 5)
    objective.forgotten = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="exactly once"):
        build_optimizer(recipe, objective)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(EnvironmentFault, match="cuda:99 is not available"):
        resolve_device("cuda:99")
