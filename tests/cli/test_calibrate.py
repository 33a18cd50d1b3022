"""`udaseg calibrate`: fit a temperature without target labels, store it and report its effect."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import udaseg
from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from udaseg.cli.commands.calibrate import LabelSource
from udaseg.cli.main import main
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.inference import run_data
from udaseg.selection import calibrate as calibrate_module

CHECKPOINT = Path("runs/colors/checkpoints/step-000007.pt")


class Scaled(nn.Module):
    """A network calibrated to the colours, with logits multiplied by `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        return SimpleNamespace(logits=self.scale * 8 * images)


def write_city(name, count, *, shift=0.0, labelled=True):
    """Write images whose labels are drawn from the softmax of 8 times the colours, plus a shift."""
    rng = np.random.default_rng(len(name))
    samples = []
    for index in range(count):
        colors = rng.integers(0, 120, (40, 60, 3), np.uint8)
        shares = np.exp((8 - shift) * colors.astype(np.float64) / 255)
        shares = (shares / shares.sum(-1, keepdims=True)).cumsum(-1)
        truth = (rng.random((40, 60, 1)) > shares).sum(-1).clip(0, 2).astype(np.uint8)
        truth[:4] = 255
        for part, stored in (("images", colors), ("labels", truth)):
            Path(name, part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored).save(Path(name, part, f"{index}.png"))
        label = f"labels/{index}.png" if labelled else None
        samples.append(Sample(f"{index}.png", label, 40, 60, (1, 1, 1)))
    classes = COLORS if labelled else None
    root = Path(name).absolute()
    every = tuple(samples)
    return PreparedDataset(name, root, root / "images", classes, {"train": every, "val": every})


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    CHECKPOINT.parent.mkdir(parents=True)
    CHECKPOINT.write_bytes(b"weights")
    sets = {
        "toyland": write_city("toyland", 4),
        "toyland-target": write_city("toyland-target", 4, shift=6.0),
    }
    state = {"run": loaded_colors(network=Scaled(3.0)), "asked": []}

    def load(path, **options):
        state["asked"].append(options["weights"])
        return state["run"]

    replace_load(monkeypatch, load)
    monkeypatch.setattr(run_data, "open_dataset", lambda name, root: sets[name])
    return SimpleNamespace(state=state, sets=sets)


def calibrate(*words):
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", "runs/colors", *words])
    return stop.value.code


def kept():
    return json.loads(Path("runs/colors/calibration.json").read_text())["student"]


def test_the_scale_is_found_on_the_source_and_kept_with_the_checkpoints_digest(world, capsys):
    assert calibrate() == 0
    facts = kept()
    assert facts["temperature"] == pytest.approx(3.0, rel=0.15)
    assert facts["checkpoint"] == "step-000007.pt"
    assert len(facts["sha256"]) == 64
    assert facts["fitted"]["data"] == "toyland val"
    assert facts["fitted"]["after"]["error"] < 0.03 < facts["fitted"]["before"]["error"]
    assert "toyland val" in capsys.readouterr().out


def test_labels_of_the_target_are_only_looked_at_and_it_says_so(world, capsys):
    assert calibrate() == 0
    both = kept()
    assert "target labels, evaluation only" in capsys.readouterr().out
    assert both["looked_at"]["after"]["pixels"] == both["looked_at"]["before"]["pixels"]
    # other target labels change only the report
    world.sets["toyland-target"] = write_city("toyland-target", 4, shift=16.0)
    assert calibrate() == 0
    other = kept()
    assert other["temperature"] == both["temperature"]
    assert other["looked_at"] != both["looked_at"]


def test_a_temperature_that_misleads_on_the_target_is_told(world, capsys):
    # the target is right only by chance; the temperature of an underconfident network sharpens it
    world.state["run"] = loaded_colors(network=Scaled(0.4))
    assert calibrate() == 0
    assert kept()["temperature"] < 0.6
    assert "this temperature makes confidence less reliable there" in capsys.readouterr().err


def test_pseudo_labels_need_no_label_at_all(world, capsys):
    unlabelled = {name: replace(each, classes=None) for name, each in world.sets.items()}
    world.sets.update(unlabelled)
    assert calibrate("--on", "pseudo", "--format", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fitted"]["on"] == "pseudo"
    assert facts["fitted"]["data"] == "toyland-target train, mixed"
    assert 0 < facts["fitted"]["before"]["accuracy"] < 1
    assert "looked_at" not in facts


def test_without_labels_there_is_no_source_to_fit_to(world, capsys):
    world.sets["toyland"] = write_city("toyland", 2, labelled=False)
    assert calibrate() == DataError.exit_code
    assert "has no labels" in capsys.readouterr().err
    assert not Path("runs/colors/calibration.json").exists()


def test_a_source_without_validation_images_is_told(world, capsys):
    world.sets["toyland"].splits.pop("val")
    assert calibrate() == 0
    assert "will be too low (overconfident)" in capsys.readouterr().err


def test_a_diverged_network_is_refused(world, capsys):
    world.state["run"] = loaded_colors(network=Scaled(float("nan")))
    assert calibrate() == CheckpointError.exit_code
    assert "diverged" in capsys.readouterr().err


def test_a_network_that_is_always_right_has_no_temperature_to_trust(world, capsys):
    world.state["run"] = loaded_colors(network=Scaled(200.0))
    city = world.sets["toyland"]
    for sample in city.splits["val"]:
        truth = random_labels(40, 60)
        Image.fromarray(painted(truth)).save(city.image_path(sample))
        Image.fromarray(truth).save(city.label_path(sample))
    assert calibrate() == 0
    assert "nearly all are wrong; do not use it" in capsys.readouterr().err


def test_the_same_command_finds_the_same_temperature(world):
    calibrate("--images", "2")
    first = kept()
    calibrate("--images", "2", "--weights", "teacher")
    document = json.loads(Path("runs/colors/calibration.json").read_text())
    assert document["student"] == first
    assert document["teacher"]["temperature"] == first["temperature"]
    assert world.state["asked"] == ["student", "teacher"]
    assert torch.isfinite(torch.tensor(first["temperature"]))


def test_python_gets_the_calibration_as_an_object(world, capsys):
    calibration = udaseg.calibrate("runs/colors", images=2)
    assert calibration.temperature == kept()["temperature"]
    assert calibration.path == Path("runs/colors/calibration.json")
    assert [row.description for row in calibration.rows] == ["toyland val", "toyland-target val"]
    assert [bool(row.note) for row in calibration.rows] == [False, True]
    facts = {"weights": "student", **kept()}
    assert calibration.to_json() == {
        name: value for name, value in facts.items() if name not in ("checkpoint", "sha256")
    }
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="on must be source or pseudo, got 'target'"):
        udaseg.calibrate("runs/colors", on="target")


def test_the_command_line_offers_every_kind_of_labels():
    assert get_args(LabelSource) == get_args(calibrate_module.LabelSource)
