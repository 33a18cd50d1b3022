"""`adapt --network` and data of the user: what a run says about its recipe and network."""

import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.support import files
from tests.support.toy import TINY
from udaseg.recipe.library import find_network, find_recipe
from udaseg.recipe.load import load

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
    assert "take very long" not in said
    cnn = ["model.backbone=resnet50", "model.output_stride=8"]
    said = udaseg("adapt", *words, *cnn, cwd=home).stderr
    assert "resnet50, deeplab_v3plus, stride 8, " in said
    assert "warning: 40000 steps of resnet50 on a CPU take very long" in said


def test_a_run_has_one_network(tmp_path):
    words = ["toyland/rccr", "--network", "light", "--network", "standard"]
    said = udaseg("adapt", *words, cwd=tmp_path, expect=2).stderr
    assert "--network is given 2 times (light, standard)" in said
    assert "`udaseg sweep` compares several" in said
