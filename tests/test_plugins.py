"""A package with a backbone, a regularizer and a label format, installed from its wheel by pip."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.support.toy import TINY, toy_root
from udaseg.data.labels.read import read_train_ids
from udaseg.runs.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGIN = REPOSITORY / "tests" / "support" / "plugin"
pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment that sees this one's packages, and the folder of its commands."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        paths = [sysconfig.get_path("purelib"), str(REPOSITORY)]
        (site / "outer.pth").write_text("\n".join(paths), encoding="utf-8")

    def run(self, *words):
        """Run a module in the environment; return its code and everything that it printed."""
        done = subprocess.run(
            [str(self.python), "-m", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def udaseg(self, *words):
        code, text = self.run("udaseg", *words)
        assert code == 0, text
        return text

    def pip(self, *words):
        code, text = self.run("pip", *words)
        assert code == 0, text


DATA = """\
name: streets
images: {train: train/images/*.png, val: val/images/*.png}
labels: {train: train/labels/*.png, val: val/labels/*.png}
match: stem
label_format: carla
classes:
  - {name: road, color: [128, 64, 128], ids: [0]}
  - {name: rest, color: [70, 70, 70], ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}
ignore: [255]
"""
WEIGHT = "method.regularizers.spread.weight"
FAST = ["method.regularizers.spread.momentum=0"]
RECIPE = [
    *("toyland/rccr", "--source", "streets/streets.yaml", "--target", "toyland-target"),
    *(word for word in TINY if not word.startswith("model.backbone")),
    *("model.backbone=sample_net", "model.head=deeplab_v2"),
    *("method.regional=null", "steps=2"),
    *("machine.checkpoint_every=1", "machine.preview_every=0"),
]


def _write_streets(folder, source):
    """Write the source of toyland as a data set whose ids are in the red channel."""
    for split in ("train", "val"):
        shutil.copytree(source / split / "images", folder / split / "images")
        (folder / split / "labels").mkdir()
        for path in (source / split / "labels").glob("*.png"):
            ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            blue = np.full_like(ids, 9)
            label = folder / split / "labels" / path.name
            assert cv2.imwrite(str(label), np.dstack([blue, blue, ids]))
    (folder / "streets.yaml").write_text(DATA, encoding="utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    environment = Environment(folder)
    toy_root(folder / "data")
    _write_streets(folder / "streets", folder / "data" / "toyland" / "source")
    source = shutil.copytree(PLUGIN, folder / "source")
    wheels = folder / "wheels"
    environment.pip("wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source)
    (wheel,) = wheels.glob("*.whl")
    environment.pip("install", "--no-deps", "--no-index", wheel)
    environment.udaseg("prepare", "streets/streets.yaml")
    environment.udaseg("adapt", *RECIPE, f"{WEIGHT}=0.1", *FAST, "--out", "whole")
    return environment


def _tensors(path):
    return load_checkpoint(path).objective


def test_its_label_format_is_read(environment):
    """The same ids as in the grey files, merged into the two classes."""
    prepared = environment.folder / "data" / "prepared" / "streets" / "labels" / "train"
    source = environment.folder / "data" / "toyland" / "source" / "train" / "labels"
    for path in source.glob("*.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        expected = np.where(ids == 255, 255, np.minimum(ids, 1))
        assert np.array_equal(read_train_ids(prepared / path.name), expected)


def test_its_backbone_and_regularizer_train(environment):
    metrics = (environment.folder / "whole" / "metrics.jsonl").read_text(encoding="utf-8")
    losses = json.loads(metrics.splitlines()[-1])["losses"]
    assert losses["spread"] > 0
    recipe = (environment.folder / "whole" / "recipe.yaml").read_text(encoding="utf-8")
    assert "packages: [udaseg-sample]" in recipe
    tensors = _tensors(environment.folder / "whole" / "checkpoints" / "step-000002.pt")
    assert tensors["regularizers.spread.deviation"].abs().sum() > 0
    assert any(name.startswith("student.backbone.coarse") for name in tensors)


def test_a_run_resumes_bit_for_bit(environment):
    half = shutil.copytree(environment.folder / "whole", environment.folder / "half")
    for path in (half / "checkpoints").glob("step-000002.*"):
        path.unlink()
    environment.udaseg("adapt", "--resume", "half")
    name = "checkpoints/step-000002.pt"
    resumed, whole = _tensors(half / name), _tensors(environment.folder / "whole" / name)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_its_run_predicts_and_informs(environment):
    images = "data/toyland/target/val/images"
    environment.udaseg("predict", images, "--checkpoint", "whole", "--out", "masks")
    assert len(list((environment.folder / "masks" / "ids").rglob("*.png"))) == 2
    assert "spread" in environment.udaseg("info", "whole")


def test_a_wrong_value_is_refused_at_its_place(environment):
    wrong = f"{WEIGHT}=-1"
    code, text = environment.run("udaseg", "adapt", *RECIPE, wrong, "--out", "wrong")
    assert code == 2, text
    assert "method.regularizers.spread.weight: must be at least 0, got -1" in text
    wrong = "method.regularizers.spread.wieght=1"
    code, text = environment.run("udaseg", "adapt", *RECIPE, wrong, "--out", "wrong")
    assert code == 2, text
    assert "did you mean 'weight'?" in text


def test_without_the_package_recipe_and_run_are_refused_with_its_name(environment):
    """The last test: the package is gone afterwards."""
    environment.pip("uninstall", "--yes", "udaseg-sample")
    shutil.copy(environment.folder / "whole" / "recipe.yaml", environment.folder / "mine.yaml")
    for words, expected in (
        (("adapt", "mine.yaml", "--out", "again"), 2),
        (("adapt", "--resume", "whole"), 2),
        (("predict", "streets/val/images", "--checkpoint", "whole", "--out", "again"), 2),
        (("prepare", "streets/streets.yaml", "--root", "other"), 3),
    ):
        code, text = environment.run("udaseg", *words)
        assert code == expected, text
        assert "udaseg-sample" in text or "carla" in text, text
        assert "Traceback" not in text
    assert not (environment.folder / "again").exists()
