"""`udaseg select` chooses without target labels, and warns clearly when it uses them."""

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

import udaseg as package
from tests.cli.running import udaseg
from tests.support.colors import COLORS, ColorNetwork, loaded_colors, painted, random_labels
from tests.support.loading import replace_load
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.labels.classes import ClassSpace, classes_to_dict
from udaseg.errors import CheckpointError, DataError, UsageError
from udaseg.inference import run_data
from udaseg.inference.trained_model import Model
from udaseg.recipe.choices import Criterion
from udaseg.recipe.load import to_dict
from udaseg.selection import candidates
from udaseg.selection.criteria import CRITERIA


class Constant(nn.Module):
    """Predicts road everywhere, with high confidence."""

    def forward(self, images):
        logits = torch.zeros_like(images)
        logits[:, 0] = 20
        return SimpleNamespace(logits=logits)


class Unsure(nn.Module):
    """Correct, but with low confidence."""

    def forward(self, images):
        return SimpleNamespace(logits=0.3 * images)


class Broken(nn.Module):
    """Diverged: predicts NaN."""

    def forward(self, images):
        return SimpleNamespace(logits=images * float("nan"))


def write_city(folder, name, split, count, *, labelled=True):
    samples = []
    for index in range(count):
        truth = random_labels(16, 24, index)
        for part, stored in (("images", painted(truth)), ("labels", truth)):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored).save(folder / name / part / f"{index}.png")
        label = f"labels/{index}.png" if labelled else None
        pixels = tuple(np.bincount(truth.ravel(), minlength=3).tolist()) if labelled else ()
        samples.append(Sample(f"{index}.png", label, *truth.shape, pixels))
    root = folder / name
    classes = COLORS if labelled else None
    return PreparedDataset(name, root, root / "images", classes, {split: tuple(samples)})


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Provide a run of four checkpoints, whose networks a test may change, and three data sets."""
    networks = {10: Broken(), 20: Constant(), 30: Unsure(), 40: ColorNetwork()}
    world = SimpleNamespace(
        path=tmp_path,
        networks=networks,
        teachers={},
        classes={},
        cities={
            "toyland": write_city(tmp_path, "toyland", "val", 3),
            "toyland-target": write_city(tmp_path, "toyland-target", "train", 4, labelled=False),
            "labelled": write_city(tmp_path, "labelled", "val", 3),
        },
    )
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in networks:
        (folder / f"step-{step:06d}.json").write_text("{}")
        (folder / f"step-{step:06d}.pt").write_bytes(b"")
    loaded = loaded_colors(["validation.resize=null", "validation.data=labelled"])

    def step_of(path):
        return int(path.stem.removeprefix("step-"))

    def load(path, *, weights="student", device="auto"):
        chosen = world.networks if weights == "student" else world.teachers
        if step_of(path) not in chosen:
            raise CheckpointError("holds no teacher")
        return Model(
            chosen[step_of(path)], COLORS, loaded.recipe, step_of(path), path, loaded.device
        )

    def find_checkpoint(path):
        path = path if path.is_file() else sorted((path / "checkpoints").glob("*.pt"))[-1]
        classes = world.classes.get(step_of(path), classes_to_dict(COLORS))
        recipe = to_dict(loaded.recipe)
        return SimpleNamespace(path=path, step=step_of(path), recipe=recipe, classes=classes)

    def open_dataset(data, *, root):
        if data not in world.cities:
            raise DataError(f"{data}: not prepared")
        return world.cities[data]

    replace_load(monkeypatch, load)
    monkeypatch.setattr(candidates, "find_checkpoint", find_checkpoint)
    monkeypatch.setattr(run_data, "open_dataset", open_dataset)
    return world


def document(home, name="selection.json"):
    return json.loads((home.path / "run" / name).read_text())


def step_chosen(home, criterion, name="selection.json"):
    return int(Path(document(home, name)["chosen"][criterion]).stem[5:])


def test_the_network_that_is_right_and_sure_is_chosen(home):
    output = udaseg("select", "run", cwd=home.path)
    assert "chosen by mean rank: run/checkpoints/step-000040.pt" in output.stdout
    assert step_chosen(home, "consensus") == 40
    assert step_chosen(home, "infomax") == 40
    rows = {row["step"]: row for row in document(home)["candidates"]}
    assert rows[40]["source"] == rows[40]["flip"] == 1
    assert rows[40]["drift"] < 0.05 < rows[20]["drift"]


def test_no_label_of_the_target_is_opened_without_the_oracle(home):
    # the labels of the labelled data set are deleted, so reading one would fail
    for path in (home.path / "labelled" / "labels").iterdir():
        path.unlink()
    output = udaseg("select", "run", cwd=home.path)
    assert "oracle" not in output.stdout.lower()
    assert document(home)["uses_target_labels"] is False
    assert not any("oracle" in key for row in document(home)["candidates"] for key in row)


def test_a_collapsed_network_wins_by_entropy_alone(home):
    udaseg("select", "run", cwd=home.path)
    assert step_chosen(home, "entropy") == 20
    row = next(row for row in document(home)["candidates"] if row["step"] == 20)
    assert abs(row["infomax"]) < 1e-6
    assert [row["collapsed"] for row in document(home)["candidates"]] == [True, False, False]


def test_collapsed_networks_are_named_and_not_chosen_whatever_the_votes_say(home):
    # without the source, and with collapsed teachers, most criteria prefer one confident class
    del home.cities["toyland"]
    home.teachers = dict.fromkeys(home.networks, Constant())
    output = udaseg("select", "run", cwd=home.path)
    rows = {row["step"]: row["mean_rank"] for row in document(home)["candidates"]}
    assert rows[20] < rows[40]
    assert step_chosen(home, "consensus") == 40
    assert "one class, so not chosen: run 20" in output.stdout


def test_if_all_have_collapsed_one_is_chosen_still(home):
    home.networks = dict.fromkeys(home.networks, Constant())
    udaseg("select", "run", cwd=home.path)
    assert step_chosen(home, "consensus") == 40


def test_a_diverged_network_is_left_out_and_stops_nothing(home):
    output = udaseg("select", "run", cwd=home.path)
    told = "left out: run/checkpoints/step-000010.pt: its outputs are NaN or infinite"
    assert output.stderr.count(told) == 1
    assert [row["step"] for row in document(home)["candidates"]] == [20, 30, 40]
    assert "run 10" not in output.stdout


def test_if_all_have_diverged_none_is_chosen(home):
    home.networks = dict.fromkeys(home.networks, Broken())
    output = udaseg("select", "run", cwd=home.path, expect=3)
    assert "error: run/checkpoints/step-000040.pt: its outputs are NaN" in output.stderr
    assert not (home.path / "run" / "selection.json").exists()


def test_a_diverged_teacher_is_told(home):
    home.teachers = {40: Broken()}
    output = udaseg("select", "run", cwd=home.path)
    assert "left out: run/checkpoints/step-000040.pt, teacher: its outputs" in output.stderr


def test_the_oracle_marks_every_output_and_writes_another_file(home):
    output = udaseg("select", "run", "--oracle", cwd=home.path)
    assert output.stdout.count("USES TARGET LABELS") == 1
    assert "ORACLE mIoU" in output.stdout
    assert "ORACLE: mIoU points" in output.stdout
    assert "USES TARGET LABELS" in output.stderr
    assert not (home.path / "run" / "selection.json").exists()
    marked = document(home, "selection-oracle.json")
    assert marked["uses_target_labels"] is True
    assert "USES TARGET LABELS" in marked["oracle"]["warning"]
    scores = {row["step"]: row["oracle_miou"] for row in marked["candidates"]}
    assert scores[40] == 1
    assert marked["oracle"]["lost_miou"]["entropy"] == pytest.approx(1 - scores[20])
    assert marked["oracle"]["lost_miou"]["consensus"] == 0
    order = marked["oracle"]["rank_correlation"]
    assert "teacher" not in order  # no candidate has a teacher
    assert order["source"] > order["entropy"]
    assert f"rank correlation with mIoU (1: same order): entropy {order['entropy']:+.2f}, " in (
        output.stdout
    )


def test_the_oracle_changes_no_choice(home):
    udaseg("select", "run", cwd=home.path)
    udaseg("select", "run", "--oracle", cwd=home.path)
    assert document(home)["chosen"] == document(home, "selection-oracle.json")["chosen"]


def test_json_on_stdout_is_what_the_file_holds(home):
    output = udaseg("select", "run", "--format", "json", "-q", cwd=home.path)
    assert json.loads(output.stdout) == document(home)


def test_a_teacher_votes_only_when_every_candidate_has_one(home):
    home.teachers = {40: Constant()}
    output = udaseg("select", "run", cwd=home.path)
    assert "not included in the mean rank: teacher" in output.stdout
    home.teachers = dict.fromkeys(home.networks, home.networks[40])
    udaseg("select", "run", cwd=home.path)
    selection = document(home)
    assert selection["criteria"]["teacher"]["votes"] is True
    assert selection["candidates"][-1]["teacher"] == 1


def test_without_the_source_at_hand_the_other_criteria_vote(home):
    del home.cities["toyland"]
    output = udaseg("select", "run", cwd=home.path)
    assert "skipping the criteria `source` and `drift`" in output.stderr
    assert step_chosen(home, "consensus") == 40


def test_the_target_decides_what_is_looked_at(home):
    udaseg("select", "run", "--images", 2, cwd=home.path)
    assert document(home)["target"] == {"data": "toyland-target", "split": "train", "images": 2}
    udaseg("select", "run", "--data", "labelled", cwd=home.path)
    assert document(home)["target"]["data"] == "labelled"


def test_candidates_with_other_classes_are_refused(home):
    other = ClassSpace(("sea", "ship", "quay"), COLORS.colors)
    home.classes[30] = classes_to_dict(other)
    output = udaseg("select", "run", cwd=home.path, expect=2)
    assert "its classes differ" in output.stderr
    assert not (home.path / "run" / "selection.json").exists()


def test_of_several_runs_the_newest_checkpoint_stands_for_each(home):
    other = home.path / "other" / "checkpoints"
    other.mkdir(parents=True)
    (other / "step-000030.json").write_text("{}")
    (other / "step-000030.pt").write_bytes(b"")
    output = udaseg("select", "run", "other", cwd=home.path)
    assert "run 40" in output.stdout
    assert "other 30" in output.stdout
    assert "run 20" not in output.stdout
    assert (home.path / "other" / "selection.json").is_file()
    assert "run 20" in udaseg("select", "run", "other", "--every", cwd=home.path).stdout


def test_the_choice_among_a_runs_own_checkpoints_is_kept(home):
    for path in (home.path / "run" / "checkpoints").glob("*.pt"):
        path.write_text(path.stem)
    kept = home.path / "run" / "checkpoints" / "best-consensus"
    udaseg("select", "run", "--oracle", cwd=home.path)
    assert not kept.exists()
    for expected in (40, 30):
        udaseg("select", "run", cwd=home.path)
        assert [path.read_text() for path in kept.glob("*.pt")] == [f"step-{expected:06d}"]
        assert [path.stem for path in kept.glob("*.json")] == [f"step-{expected:06d}"]
        home.networks[40] = Broken()


def test_a_choice_among_several_runs_is_kept_in_none(home):
    other = home.path / "other" / "checkpoints"
    other.mkdir(parents=True)
    (other / "step-000030.json").write_text("{}")
    (other / "step-000030.pt").write_bytes(b"")
    udaseg("select", "run", "other", cwd=home.path)
    assert not list(home.path.glob("*/checkpoints/best-*"))


def test_one_checkpoint_is_no_choice_and_none_is_an_error(home):
    one = "run/checkpoints/step-000040.pt"
    assert "nothing to compare" in udaseg("select", one, cwd=home.path).stderr
    assert "no such run" in udaseg("select", "nowhere", cwd=home.path, expect=3).stderr


def test_python_gets_the_selection_as_an_object(home, capsys, monkeypatch):
    monkeypatch.chdir(home.path)
    selection = package.select("run")
    assert selection.best == Path("run/checkpoints/step-000040.pt")
    assert selection.consensus.step == selection.chosen["infomax"].step == 40
    assert [candidate.step for candidate in selection.candidates] == [20, 30, 40]
    assert selection.to_json() == document(home)
    assert selection.warning is None
    assert selection.lost_miou == selection.rank_correlations == {}
    options = package.SelectOptions(oracle=True)
    marked = package.select([Path("run")], data="labelled", split="val", options=options)
    assert "USES TARGET LABELS" in marked.warning
    assert marked.to_json() == document(home, "selection-oracle.json")
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="give a path, or a list of one or more"):
        package.select([])


def test_the_command_line_and_recipes_offer_every_criterion():
    names = [criterion.name for criterion in CRITERIA]
    assert list(get_args(Criterion)) == names


def test_an_oracle_without_labels_is_refused_before_a_network_runs(home, monkeypatch):
    home.cities["photos"] = replace(home.cities["toyland-target"], classes=None)
    monkeypatch.setattr("udaseg.selection.select.compute_criteria", None)
    options = package.SelectOptions(oracle=True)
    with pytest.raises(DataError, match="has no labels, so the oracle cannot score on it"):
        package.select(home.path / "run", data="photos", options=options)
