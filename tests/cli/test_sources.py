"""Every method refuses sources that teach nothing, and warns of a loss of 0."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.running import udaseg
from tests.compare_commits import TINY
from tests.support import files
from udaseg.data.open import open_dataset
from udaseg.methods.objectives.objective import LossReport
from udaseg.recipe.library import list_recipes
from udaseg.training.callbacks.collapse import CollapseWatch

METHODS = sorted(
    entry.name.removeprefix("toyland/")
    for entry in list_recipes()
    if entry.name.startswith("toyland/")
)


def source(folder, ids, classes="[a, b, c]", size=(64, 128)):
    """Write a data set of two images whose labels have these ids, and return its YAML."""
    for number in range(2):
        files.put(folder / f"images/{number}.png", files.image_png(*size, number))
        label = np.random.default_rng(number).choice(ids, size)
        files.put(folder / f"labels/{number}.png", files.gray_png(label))
    return files.dataset_yaml(
        folder,
        "name: own\nimages: images/*.png\nlabels: labels/*.png\n"
        f"classes: {classes}\nignore: [255]\n",
    )


@pytest.fixture(autouse=True)
def forgotten(root):
    """Let each test prepare a set of the same name."""
    yield
    shutil.rmtree(root / "prepared" / "own", ignore_errors=True)


def trained(yaml, root, method="source_only", *words, expect=3):
    verb = "train" if method == "source_only" else "adapt"
    return udaseg(
        *(
            verb,
            f"toyland/{method}",
            "--source",
            yaml,
            "--root",
            root,
            "--out",
            yaml.parent / "run",
        ),
        *("--steps", 3, *(word for word in TINY if not word.startswith("source.resize"))),
        *("validation.data=null", *words),
        cwd=yaml.parent,
        expect=expect,
    )


def only_error(output):
    (line,) = (line for line in output.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize("method", METHODS)
def test_a_source_of_one_class_is_refused_by_every_method(root, tmp_path, method):
    yaml = source(tmp_path, [0, 255], "[road]")
    assert only_error(trained(yaml, root, method)) == (
        "error: own: its only class is 'road', so there is nothing to tell it from; add a class "
        "for the rest"
    )
    assert not (tmp_path / "run").exists()


def test_a_source_whose_labels_show_one_class_of_several_is_refused(root, tmp_path):
    yaml = source(tmp_path, [1, 255])
    assert "the only class in split 'train' is 'b'" in only_error(trained(yaml, root, "dacs"))


@pytest.mark.parametrize("method", METHODS)
def test_a_source_without_any_label_is_refused_by_every_method(root, tmp_path, method):
    yaml = source(tmp_path, [255])
    line = only_error(trained(yaml, root, method))
    assert line.startswith("error: own: no label of split 'train' has a pixel of any class")
    assert not (tmp_path / "run").exists()


def test_labels_that_no_crop_shows_are_told_of_once(root, tmp_path):
    yaml = source(tmp_path, [0, 1], size=(128, 256))
    for path in (tmp_path / "labels").iterdir():
        label = np.array(Image.open(path))
        label[:, 1::2] = label[1::2] = 255  # at half the size, only these are left
        files.put(path, files.gray_png(label))
    halved = ("source.resize=[64, 128]", "machine.log_every=1")
    output = trained(yaml, root, "source_only", *halved, expect=0)
    told = "the loss and its gradient were 0 in all of the first 3 steps: nothing is learnt"
    assert output.stderr.count(told) == 1
    assert "no training pixels for: c" in output.stderr  # classes without labels are allowed
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["losses"]["total"] for line in lines] == [0, 0, 0]
    assert [list(line.get("alarms", {})) for line in lines] == [[], [], ["nothing_learnt"]]


def test_the_option_is_repeated_for_several_sources(root, tmp_path):
    yaml = source(tmp_path, [0, 1], "[road, mud]")
    words = ("toyland/source_only", "--source", "toyland", "--source", yaml, "--root", root)
    output = udaseg("train", *words, "--dry-run", *TINY, cwd=tmp_path)
    assert f"  data: [toyland, {yaml}]" in output.stdout.replace('"', "")
    assert "  drawn  6 of toyland, 2 of own, as one set; not in toyland: mud; not in own: " in (
        output.stderr
    )


@pytest.mark.parametrize(("norms", "told"), [([0.0], 1), ([0.0, 1e-9], 0), ([float("nan")], 0)])
def test_a_gradient_of_0_is_told_after_50_steps_and_not_again(norms, told, root, caplog):
    classes = open_dataset("toyland", root=root).classes
    status = SimpleNamespace(incident_counts=Counter(), write=lambda *_, **__: None)
    state = SimpleNamespace(
        context=SimpleNamespace(data=SimpleNamespace(classes=classes)),
        report=LossReport(torch.zeros(()), {}),
        stage=SimpleNamespace(end=400),
        warm_up_end=0,
        status=status,
        dropped=None,
        step=0,
        event={},
        wants_line=False,
    )
    watch = CollapseWatch()
    watch.begin(state)
    for step in range(1, 301):
        state.step, state.gradient_norm = step, norms[step % len(norms)]
        watch.on_step(state)
    assert len(caplog.records) == told == status.incident_counts["alarm_nothing_learnt"]
    assert all("step 50: " in record.message for record in caplog.records)
