"""`adapt --network` and data of the user: what a run says about its recipe and network."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.cli.running import udaseg
from tests.support import files
from tests.support.small import shipped
from tests.support.toy import TINY
from udaseg.methods.build import build_objective
from udaseg.models.segmenter import build_segmenter
from udaseg.recipe.library import find_network, find_recipe
from udaseg.recipe.load import load
from udaseg.training.plan import _more_passes, _warn_of_slow_device

SMALL = [*(word for word in TINY if "valid" not in word), "machine.workers=0", "--dry-run"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with `city.yaml`, two labelled images, and `photos/` with one."""
    home = tmp_path_factory.mktemp("home")
    for number in range(2):
        files.put(home / f"images/{number}.png", files.image_png(64, 128, number))
        label = np.random.default_rng(number).choice(3, (64, 128))
        files.put(home / f"labels/{number}.png", files.gray_png(label))
    files.put(home / "photos/a.png", files.image_png(64, 128, 5))
    files.dataset_yaml(
        home,
        "name: city\nimages: images/*.png\nlabels: labels/*.png\nclasses: [a, b, c]\n",
    ).rename(home / "city.yaml")
    return home


@pytest.mark.slow
def test_own_data_take_the_light_network_on_a_cpu_and_say_so(home):
    words = ["--source", "city.yaml", "--target", "photos"]
    said = udaseg("adapt", *words, *SMALL, cwd=home).stderr
    assert (
        "city.yaml has no recipe of its own, so this run takes own/light, which suits a CPU" in said
    )
    assert f"recipe  {find_recipe('own/light')} (light, seed 0)" in said
    assert "runs/city-photos-light-s0" in said


def test_the_plan_names_the_network_file_and_the_run_stores_the_whole_recipe(home):
    words = ["--source", "city.yaml", "--target", "photos", "--network", "light", "steps=1"]
    changes = [word for word in SMALL if word != "--dry-run"]
    said = udaseg("adapt", *words, *changes, "--out", "run", cwd=home).stderr
    rccr, light = find_recipe("own/rccr"), find_network("light")
    assert f"recipe  {rccr} with {light} (rccr-light, seed 0)" in said
    stored = load(home / "run/recipe.yaml", stored=True)
    options = ["source.data=city.yaml", "target.data=photos", "steps=1", *changes]
    assert stored == load(rccr, overrides=options, network=light)
    udaseg("adapt", "--resume", "run", "--network", "light", cwd=home, expect=2)


@pytest.mark.slow
def test_the_plan_has_the_stride_that_the_network_has(home):
    words = ["--source", "city.yaml", "--target", "photos", "--network", "light", *SMALL]
    words = [word for word in words if not word.startswith(("model.backbone", "model.output"))]
    vit = ["model.backbone=timm:test_vit", "model.output_stride=8"]
    said = udaseg("adapt", *words, *vit, cwd=home).stderr
    assert (
        "timm:test_vit, deeplab_v3plus, stride 16 (its own: without dilation, it cannot have"
        in said
    )
    cnn = ["model.backbone=resnet50", "model.output_stride=8"]
    said = udaseg("adapt", *words, *cnn, cwd=home).stderr
    assert "resnet50, deeplab_v3plus, stride 8, " in said


@pytest.mark.parametrize(
    ("backbone", "device", "steps", "expected"),
    [
        ("mobilenet_v2", "cpu", 224, ""),
        ("mobilenet_v2", "meta", 2250, ""),
        ("mobilenet_v2", "cpu", 2250, "use a GPU, or fewer steps: --steps 56 takes about an hour"),
        ("resnet50", "cpu", 2250, "use a GPU, --network light, or fewer steps: --steps 56 takes"),
    ],
)
def test_the_plan_warns_of_a_long_run_on_a_cpu(
    monkeypatch, caplog, backbone, device, steps, expected
):
    """A forward pass of an image of 32x32 takes a second of this clock.

    A step has 4 images of 64x64, each as long as 4 forward passes: 64 s. 225 steps are 4 hours.
    """
    monkeypatch.setattr("time.perf_counter", itertools.count().__next__)
    recipe = shipped("toyland/dacs", [*TINY[:-3], "model.weights=random", f"steps={steps}"])
    recipe = replace(recipe, model=replace(recipe.model, backbone=backbone))
    images = {f"{domain}_images": (2, 3, 64, 64) for domain in ("source", "target")}
    setup = SimpleNamespace(
        recipe=recipe,
        device=torch.device(device),
        objective=SimpleNamespace(student=build_segmenter(recipe.model, 3)),
        batches=SimpleNamespace(shapes=lambda: {**images, "source_labels": (2, 64, 64)}),
    )
    setup.objective.student.backbone.eval()
    modes = [part.training for part in setup.objective.student.modules()]
    _warn_of_slow_device(setup)
    assert [part.training for part in setup.objective.student.modules()] == modes
    long = f"{steps} steps of {backbone} take about 40 hours on this CPU; "
    assert (long + expected in caplog.text) if expected else not caplog.text


def test_the_teachers_passes_count_in_the_time_of_a_step():
    words = ["method.teacher.scale=2", "method.masking.weight=1"]
    recipe = shipped("toyland/foundation", [*TINY, *words])
    objective = build_objective(recipe, 3)
    assert _more_passes(objective) == 2 * 4 - 1 + 3  # mirror images, twice as large; masked images
    assert _more_passes(objective.student) == 0


def test_a_run_has_one_network(tmp_path):
    words = ["toyland/rccr", "--network", "light", "--network", "standard"]
    said = udaseg("adapt", *words, cwd=tmp_path, expect=2).stderr
    assert "--network is given 2 times (light, standard)" in said
    assert "`udaseg sweep` compares several" in said
