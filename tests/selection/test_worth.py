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
from tests.support.loading import replace_load
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import CheckpointError, DataError, NotFiniteError, UsageError
from udaseg.inference import run_data, trained_model
from udaseg.inference.trained_model import Model
from udaseg.runs.best import warm_up_folder
from udaseg.runs.worth import read_worth, unknown_worth


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
        manifest = {"sha256": f"digest of {name} {step}"}
        (folder / f"step-{step:06d}.json").write_text(json.dumps(manifest))

    def add_warm_up(self, network):
        self.add("warm_up", network, warm_up_folder(self.path / "run"), step=10)

    def load(self, path, *, weights="student", device="auto"):
        assert weights == "student"
        folder = path.parent if path.suffix else path  # what was compared is loaded by its file
        name = folder.parent.name if folder.name == "checkpoints" else folder.name
        if name not in self.networks:
            raise CheckpointError(f"{path}: no such run or checkpoint")
        network, step = self.networks[name]
        folder = warm_up_folder(Path("run")) if name == "warm_up" else Path(name) / "checkpoints"
        file = folder / f"step-{step:06d}.pt"
        recipe = loaded_colors(["validation.resize=null"]).recipe
        digest, device = f"digest of {name} {step}", torch.device("cpu")
        return Model(network, self.classes[name], recipe, step, file, device, sha256=digest)


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
    replace_load(monkeypatch, lambda path, **words: home.load(Path(path), **words))
    monkeypatch.setattr(run_data, "open_dataset", open_dataset)
    return home


class Wrong(nn.Module):
    """As unsure as it is wrong: takes road for sky."""

    def forward(self, images):
        return Unsure()(images[:, [1, 0, 2]])


def test_the_warm_network_of_the_run_is_the_baseline(home):
    home.add_warm_up(Wrong())
    worth = package.worth_it("run")
    assert worth.verdict == "better"
    assert worth.adapted.step == 40
    assert worth.baseline.step == 10
    assert worth.adapted.checkpoint == "checkpoints/step-000040.pt"
    assert worth.baseline.checkpoint == "checkpoints/warm_up/step-000010.pt"
    values = {row.name: (row.adapted, row.baseline) for row in worth.criteria}
    assert list(values) == ["entropy", "infomax", "flip", "source", "drift"]
    assert values["source"][0] == 1 > values["source"][1]
    assert values["entropy"][0] < 0.01 < values["entropy"][1]
    assert worth.target == {"data": "toyland-target", "split": "train", "images": 4}
    assert worth.source["images"] == 3
    assert sum(worth.source["shares"].values()) == pytest.approx(1)
    assert worth.adapted.source_iou == {"road": 1, "sky": 1, "car": 1}
    assert worth.baseline.source_iou["sky"] < 1
    assert package.Run("run").worth == worth
    assert read_worth(home.path / "run", "digest of run 40") == worth
    assert read_worth(home.path / "run", "digest of a later network") is None


def test_a_network_that_got_worse_gets_that_verdict(home):
    home.add_warm_up(ColorNetwork())
    home.networks["run"] = Wrong(), 40
    assert package.worth_it("run").verdict == "worse"
    home.networks["run"] = Constant(), 40
    worth = package.worth_it("run")
    assert (worth.verdict, worth.adapted.collapsed) == ("worse", True)


def test_any_other_run_can_be_the_baseline(home):
    home.add("plain", Wrong(), home.path / "plain", step=50)
    assert package.worth_it("run", baseline="plain").verdict == "better"
    worth = package.worth_it("run", baseline="plain", options=package.WorthOptions(images=2))
    assert worth.baseline.checkpoint == str(home.path / "plain/checkpoints/step-000050.pt")
    assert worth.target["images"] == worth.source["images"] == 2


def test_without_a_baseline_nothing_is_known_and_nothing_is_written(home):
    worth = package.worth_it("run")
    assert (worth.verdict, worth.adapted, list(worth.criteria)) == ("unknown", None, [])
    assert "`udaseg select --worth-it run --baseline SOURCE_ONLY_RUN`" in worth.reason
    assert package.Run("run").worth is None
    assert not (home.path / "run/worth.json").exists()


def test_a_run_with_a_warm_up_that_was_not_compared_says_so(home):
    assert (
        "there is nothing to compare the adapted network with" in unknown_worth(Path("run")).reason
    )
    home.add_warm_up(Wrong())
    assert unknown_worth(Path("run")).reason == (
        "it was not compared with the one before the adaptation yet: `udaseg select --worth-it run`"
    )


def test_no_label_of_the_target_is_opened(home, monkeypatch):
    home.add_warm_up(Unsure())
    real, opened = PreparedDataset.label_path, set()

    def label_path(self, sample):
        opened.add(self.name)
        return real(self, sample)

    monkeypatch.setattr(PreparedDataset, "label_path", label_path)
    package.worth_it("run")
    assert opened == {"toyland"}


def test_without_the_source_there_is_no_verdict(home, caplog):
    home.add_warm_up(Unsure())
    del home.cities["toyland"]
    with caplog.at_level(logging.WARNING):
        worth = package.worth_it("run")
    assert worth.source is None
    assert [row.name for row in worth.criteria if row.adapted is None] == ["source", "drift"]
    assert worth.adapted.source_iou == {}
    assert (worth.verdict, worth.balance) == ("unclear", None)
    assert worth.reason == "nothing can be said without source and drift"
    assert "not stored, because the source is missing" in caplog.text
    assert package.Run("run").worth is None


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
    home.add_warm_up(Wrong())
    output = udaseg("select", "run", "--worth-it", cwd=home.path)
    answer = "Was the adaptation worth it? Yes: the adapted network gains 1.655 in all: "
    assert f"{answer}+0.982 by infomax" in output.stdout
    assert "baseline: step 10, checkpoints/warm_up/step-000010.pt" in output.stdout
    (row,) = (line.split() for line in output.stdout.splitlines() if line.startswith("source"))
    assert row[:3] + row[4:] == ["source", "↑", "1.000", "adapted"]
    output = udaseg("select", "run", "--worth-it", "--format", "json", "-q", cwd=home.path)
    assert json.loads(output.stdout) == json.loads((home.path / "run/worth.json").read_text())
    assert output.stderr == ""


def test_the_command_says_how_to_get_a_verdict(home):
    output = udaseg("select", "run", "--worth-it", cwd=home.path)
    assert output.stdout.startswith("Was the adaptation worth it? Unknown: there is")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["run", "other", "--worth-it"], "give the other one with --baseline"),
        (["run", "--baseline", "plain"], "--baseline needs --worth-it"),
        (["run", "--worth-it", "--oracle", "--every"], "leave out --every, --oracle"),
        (["run", "--worth-it", "--weights", "teacher"], "leave out --weights"),
    ],
)
def test_options_that_contradict_are_refused(home, words, advice):
    assert advice in udaseg("select", *words, cwd=home.path, expect=2).stderr


@pytest.mark.parametrize(
    ("adapted", "baseline"),
    [("run", "run"), ("run", "run/checkpoints"), ("run/checkpoints/warm_up", None)],
)
def test_a_network_is_no_baseline_of_itself(home, adapted, baseline):
    home.add_warm_up(Wrong())
    with pytest.raises(UsageError, match=r"step-0000.0\.pt: is the network itself; name another"):
        package.worth_it(adapted, baseline=baseline)


def test_only_the_comparison_of_the_newest_network_is_kept_and_shown(home, caplog):
    home.add_warm_up(Wrong())
    stored = package.worth_it("run")
    with caplog.at_level(logging.INFO):
        older = package.worth_it("run/checkpoints/warm_up", baseline="run")
    assert (older.verdict, stored.verdict) == ("worse", "better")
    assert "not stored, because it is not about the newest checkpoint" in caplog.text
    assert package.Run("run").worth == stored
    home.add("run", ColorNetwork(), home.path / "run", step=60)  # trained on
    assert package.Run("run").worth is None


EVAL = ("eval", "run", "--data", "toyland-target", "--split", "train")


@pytest.fixture
def worse(home):
    """Provide a run that its adaptation made worse, and that says so."""
    home.add_warm_up(ColorNetwork())
    home.networks["run"] = Wrong(), 40
    assert package.worth_it("run").verdict == "worse"
    return home


def test_eval_scores_the_baseline_beside_one_that_got_worse(worse):
    output = udaseg(*EVAL, "--format", "json", cwd=worse.path)
    scores = json.loads(output.stdout)
    assert scores["means"]["mIoU"] < 0.5
    assert scores["baseline"]["means"]["mIoU"] == 1
    assert scores["baseline"]["protocol"]["weights"] == "student at step 10, the baseline"
    assert "the adaptation made it worse than run/checkpoints/warm_up/" in output.stderr
    # the adapted network's are kept, and gate
    (kept,) = (worse.path / "run/eval").iterdir()
    assert json.loads((kept / "scores.json").read_text())["means"] == scores["means"]
    udaseg(*EVAL, "--fail-under", 50, cwd=worse.path, expect=7)
    for words in ((), ("--format", "md")):
        text = " ".join(udaseg(*EVAL, *words, cwd=worse.path).stdout.split())
        assert text.count("weights student at step 40") == 1
        assert text.count("weights student at step 10, the baseline") == 1


def test_eval_of_several_sets_has_both_networks_too(worse):
    words = ("eval", "run", "--data", "toyland-target,toyland-target2", "--split", "train")
    worse.cities["toyland-target2"] = write_city(worse.path, "again", "train", 2)
    for more in ((), ("--format", "md")):
        text = " ".join(udaseg(*words, *more, cwd=worse.path).stdout.split())
        assert text.count("the baseline") == 2
    both = json.loads(udaseg(*words, "--format", "json", cwd=worse.path).stdout)
    assert both["data"]["again"]["baseline"]["means"]["mIoU"] == 1
    assert both["average"]["mIoU"] < 0.5


def test_eval_scores_one_network_where_no_verdict_says_worse(worse):
    worse.networks["run"] = Wrong(), 41  # trained on since
    assert "baseline" not in udaseg(*EVAL, "--format", "json", cwd=worse.path).stdout
    worse.networks["run"] = ColorNetwork(), 40
    worse.add_warm_up(Wrong())
    assert package.worth_it("run").verdict == "better"
    assert "baseline" not in udaseg(*EVAL, "--format", "json", cwd=worse.path).stdout


def test_eval_goes_on_without_the_baseline(worse):
    del worse.networks["warm_up"]
    output = udaseg(*EVAL, "--format", "json", cwd=worse.path)
    assert "baseline" not in json.loads(output.stdout)
    assert "the baseline is not scored" in output.stderr


def predicted(home, *words):
    """Predict an image of the target; return the settings of the masks, and the messages."""
    image = next((home.path / "toyland-target/images").iterdir())
    command = ("predict", image, "--checkpoint", "run", "--overwrite", *words)
    output = udaseg(*command, cwd=home.path)
    return json.loads((home.path / "masks/prediction.json").read_text()), output.stderr


def test_predict_follows_the_verdict(worse):
    settings, messages = predicted(worse)
    assert (settings["step"], settings["weights"]) == (10, "student")
    assert settings["worth"] == {"verdict": "worse", "network": "baseline"}
    assert "the verdict on the adaptation is worse (the adapted network loses 1.655 in all: " in (
        messages
    )
    assert "so the baseline network is used" in messages
    worse.add_warm_up(Wrong())
    worse.networks["run"] = ColorNetwork(), 40
    package.worth_it("run")
    settings, _ = predicted(worse)
    assert settings["step"] == 40
    assert settings["worth"] == {"verdict": "better", "network": "adapted"}


def test_predict_takes_the_adapted_network_if_told_so(worse):
    settings, messages = predicted(worse, "--weights", "student")
    assert settings["step"] == 40
    assert "worth" not in settings
    assert "verdict" not in messages


def test_predict_without_a_verdict_takes_the_adapted_network(worse):
    (worse.path / "run/worth.json").unlink()
    settings, messages = predicted(worse)
    assert settings["step"] == 40
    assert "worth" not in settings
    assert "verdict" not in messages


def test_the_verdict_is_about_the_student(worse):
    model = worse.load(Path("run"))
    assert trained_model.stored_worth(model).verdict == "worse"
    model.weights = "teacher"
    assert trained_model.stored_worth(model) is None


def changed(home):
    home.add_warm_up(Unsure())
    home.networks["warm_up"] = Unsure(), 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed, "step-000010.pt: has changed since"),
        (lambda home: home.networks.pop("warm_up"), "no such run or checkpoint"),
    ],
)
def test_predict_refuses_a_baseline_that_changed_or_is_gone(worse, change, message):
    change(worse)
    image = next((worse.path / "toyland-target/images").iterdir())
    output = udaseg("predict", image, "--checkpoint", "run", cwd=worse.path, expect=3)
    assert message in output.stderr
    assert "or use `--weights student`" in output.stderr
    assert "run `udaseg select --worth-it run --baseline RUN` again" in output.stderr
    predicted(worse, "--weights", "student")
    assert "run/checkpoints/step-000040.pt was compared with this network" in output.stderr
