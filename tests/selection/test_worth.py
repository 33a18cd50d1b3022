"""`select --worth-it` compares an adapted network with another one, without target labels."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import udaseg as package
from tests.cli.running import udaseg
from tests.cli.test_select import Constant, Unsure, write_city
from tests.support.colors import COLORS, ColorNetwork, loaded_colors
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError, NotFiniteError, UsageError
from udaseg.inference import run_data, trained_model
from udaseg.inference.trained_model import Model
from udaseg.runs.best import warm_up_folder
from udaseg.runs.worth import read_worth


class Home:
    """A working folder with a run, and networks by the names of their folders."""

    def __init__(self, path):
        self.path, self.networks = path, {}
        self.classes = dict.fromkeys(("run", "warm_up", "plain"), COLORS)
        self.add("run", ColorNetwork(), path / "run", step=40)

    def add(self, name, network, run, *, step):
        self.networks[name] = network, step
        folder = run if name == "warm_up" else run / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{step:06d}.pt").touch()

    def add_warm_up(self, network):
        self.add("warm_up", network, warm_up_folder(self.path / "run"), step=10)

    def load(self, path, *, weights="student", device="auto"):
        assert weights == "student"
        network, step = self.networks[path.name]
        folder = path if path.name == "warm_up" else path / "checkpoints"
        file = folder / f"step-{step:06d}.pt"
        recipe = loaded_colors(["validation.resize=null"]).recipe
        digest, device = f"digest of {path.name}", torch.device("cpu")
        return Model(network, self.classes[path.name], recipe, step, file, device, sha256=digest)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cities = {
        "toyland": write_city(tmp_path, "toyland", "val", 3),
        "toyland-target": write_city(tmp_path, "toyland-target", "train", 4),
    }

    def open_dataset(data, *, root):
        if data not in cities:
            raise DataError(f"{data}: not prepared")
        return cities[data]

    home = Home(tmp_path)
    home.cities = cities
    monkeypatch.setattr(trained_model, "load", lambda path, **words: home.load(Path(path), **words))
    monkeypatch.setattr(run_data, "open_dataset", open_dataset)
    return home


class Wrong(nn.Module):
    """As unsure as it is wrong: takes road for sky."""

    def forward(self, images):
        return Unsure()(images[:, [1, 0, 2]])


def test_the_warm_network_of_the_run_is_the_baseline(home):
    home.add_warm_up(Unsure())
    worth = package.worth_it("run")
    assert worth.verdict == "better"
    assert worth.adapted.step == 40
    assert worth.baseline.step == 10
    assert worth.adapted.checkpoint == "checkpoints/step-000040.pt"
    assert worth.baseline.checkpoint == "checkpoints/warm_up/step-000010.pt"
    values = {row.name: (row.adapted, row.baseline) for row in worth.criteria}
    assert list(values) == ["entropy", "infomax", "flip", "source", "drift"]
    assert values["source"] == (1, 1)
    assert values["entropy"][0] < 0.01 < values["entropy"][1]
    assert worth.target == {"data": "toyland-target", "split": "train", "images": 4}
    assert worth.source["images"] == 3
    assert sum(worth.source["shares"].values()) == pytest.approx(1)
    assert package.Run("run").worth == worth
    assert read_worth(home.path / "run", "digest of run") == worth
    assert read_worth(home.path / "run", "digest of a later network") is None


def test_a_network_that_got_worse_is_told(home):
    home.add_warm_up(ColorNetwork())
    home.networks["run"] = Wrong(), 40
    assert package.worth_it("run").verdict == "worse"
    home.networks["run"] = Constant(), 40
    worth = package.worth_it("run")
    assert (worth.verdict, worth.adapted.collapsed) == ("worse", True)


def test_any_other_run_can_be_the_baseline(home):
    home.add("plain", Unsure(), home.path / "plain", step=50)
    worth = package.worth_it("run", baseline="plain", options=package.WorthOptions(images=2))
    assert worth.verdict == "better"
    assert worth.baseline.checkpoint == str(home.path / "plain/checkpoints/step-000050.pt")
    assert worth.target["images"] == worth.source["images"] == 2


def test_without_a_baseline_nothing_is_known_and_nothing_is_written(home):
    worth = package.worth_it("run")
    assert (worth.verdict, worth.adapted, list(worth.criteria)) == ("unknown", None, [])
    assert "`udaseg select --worth-it run --baseline SOURCE_ONLY_RUN`" in worth.reason
    assert package.Run("run").worth is None
    assert not (home.path / "run/worth.json").exists()


def test_no_label_of_the_target_is_opened(home, monkeypatch):
    home.add_warm_up(Unsure())
    real, opened = PreparedDataset.label_path, set()

    def label_path(self, sample):
        opened.add(self.name)
        return real(self, sample)

    monkeypatch.setattr(PreparedDataset, "label_path", label_path)
    package.worth_it("run")
    assert opened == {"toyland"}


def test_without_the_source_the_other_criteria_decide(home, caplog):
    home.add_warm_up(Unsure())
    del home.cities["toyland"]
    with caplog.at_level(logging.WARNING):
        worth = package.worth_it("run")
    assert worth.source is None
    assert [row.name for row in worth.criteria if row.adapted is None] == ["source", "drift"]
    assert worth.verdict == "better"


def test_networks_of_other_classes_and_diverged_ones_are_refused(home):
    home.add_warm_up(Unsure())
    home.classes["warm_up"] = ClassSpace(("road", "sky", "van"), COLORS.colors)
    with pytest.raises(UsageError, match="its classes differ"):
        package.worth_it("run")
    home.classes["warm_up"] = COLORS
    home.networks["warm_up"] = nn.Identity(), 10
    home.networks["warm_up"][0].forward = lambda images: Unsure()(images * float("nan"))
    with pytest.raises(NotFiniteError, match=r"warm_up/step-000010.pt"):
        package.worth_it("run")


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.clear(),
        lambda stored: stored.update(verdict="fine"),
        lambda stored: stored.update(adapted=None),
        lambda stored: stored["criteria"][0].update(adapted="0.1"),
        lambda stored: stored["baseline"].pop("sha256"),
    ],
)
def test_a_damaged_file_is_no_verdict(home, change):
    home.add_warm_up(Unsure())
    package.worth_it("run")
    file = home.path / "run/worth.json"
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))
    assert read_worth(home.path / "run") is None


def test_the_command_prints_the_verdict_and_the_values(home):
    home.add_warm_up(Unsure())
    output = udaseg("select", "run", "--worth-it", cwd=home.path)
    assert "worth it? better: entropy and infomax for the adapted network" in output.stdout
    assert "baseline: step 10, checkpoints/warm_up/step-000010.pt" in output.stdout
    (row,) = (line.split() for line in output.stdout.splitlines() if line.startswith("source"))
    assert row == ["source", "↑", "1.000", "1.000", "-"]
    output = udaseg("select", "run", "--worth-it", "--format", "json", "-q", cwd=home.path)
    assert json.loads(output.stdout) == json.loads((home.path / "run/worth.json").read_text())
    assert output.stderr == ""


def test_the_command_says_how_to_get_a_verdict(home):
    output = udaseg("select", "run", "--worth-it", cwd=home.path)
    assert output.stdout.startswith("worth it? unknown: there is nothing to compare")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "other", "--worth-it"], "give the other one with --baseline"),
        (["run", "--baseline", "plain"], "--baseline needs --worth-it"),
        (["run", "--worth-it", "--oracle", "--every"], "leave out --every, --oracle"),
        (["run", "--worth-it", "--weights", "teacher"], "leave out --weights"),
    ],
)
def test_options_that_contradict_are_refused(home, words, told):
    assert told in udaseg("select", *words, cwd=home.path, expect=2).stderr
