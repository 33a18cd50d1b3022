"""The best checkpoint is kept in any order of the values, and after every stop."""

import json
import math
import random
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from tests.support.small import shipped, small_segmenter
from tests.support.toy import TINY, toy_pair
from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace, classes_to_dict
from udaseg.errors import DataError, RecipeError
from udaseg.recipe.choices import Criterion
from udaseg.runs import best as best_module
from udaseg.runs.best import best_folder, read_record
from udaseg.runs.checkpoint import newest_checkpoint, save_checkpoint
from udaseg.selection.criteria import CRITERIA
from udaseg.training.callbacks import keep_best
from udaseg.training.callbacks.keep_best import KeepBest, open_criterion_sets

CLASSES = ClassSpace(("road", "car"), ((1, 2, 3), (4, 5, 6)))


def recipe_of(criterion, method="dacs"):
    return shipped(f"toyland/{method}", [*TINY, f"machine.keep_best={criterion}"])


class Home:
    """A run folder whose checkpoints have given criterion values."""

    def __init__(self, folder, criterion, monkeypatch):
        self.folder, self.criterion = folder, criterion
        self.recipe = recipe_of(criterion)
        self.values = {}
        network = torch.nn.Linear(2, 2)
        group = {"params": list(network.parameters()), "name": "all", "base_lr": 0.1}
        self.optimizer = torch.optim.SGD([group], 0.1)
        self.made = SimpleNamespace(
            objective=SimpleNamespace(student=network), device=torch.device("cpu")
        )

        def measured(candidate, loaded, sets, *, device, criteria):
            assert criteria == {criterion}
            assert not loaded.segmenter.training
            value, candidate.collapsed = self.values[candidate.step]
            candidate.values = {each.name: None for each in CRITERIA} | {criterion: value}

        monkeypatch.setattr(keep_best, "compute_criteria", measured)

    def reach(self, step):
        network = self.made.objective.student
        with torch.no_grad():
            network.bias.fill_(float(step))
        path = save_checkpoint(
            self.folder / "checkpoints",
            step=step,
            objective=network,
            optimizer=self.optimizer,
            recipe={},
            classes=classes_to_dict(CLASSES),
            files={},
            keep=2,
        )
        # a new callback each time, as after a resume
        keeper = KeepBest(self.recipe, None, CLASSES, self.folder)
        assert not keeper.has_compared(step)
        keeper.consider(self.made, path, step)
        assert keeper.has_compared(step)
        assert network.training

    @property
    def kept(self):
        checkpoint = newest_checkpoint(best_folder(self.folder, self.criterion))
        assert float(checkpoint.objective["bias"][0]) == checkpoint.step
        return checkpoint.step


def best_of(values, better):
    """The oracle: prefer not collapsed, then the best value, then the later step."""
    best = None
    for step, (value, collapsed) in values.items():
        known = value is not None and not math.isnan(value)
        merit = (known and not collapsed, known, value if known else 0)
        if known and better == "lower":
            merit = (*merit[:2], -value)
        if best is None or merit >= best[0]:
            best = (merit, step)
    return best[1]


@pytest.mark.parametrize("criterion", ["entropy", "infomax"])
def test_the_best_so_far_is_kept_in_any_order(tmp_path, monkeypatch, criterion):
    rng = random.Random(0)
    better = next(each.better for each in CRITERIA if each.name == criterion)
    for trial in range(5):
        home = Home(tmp_path / f"{trial}", criterion, monkeypatch)
        for step in range(1, 7):
            value = rng.choice([0.1, 0.2, 0.3, 0.4, None, math.nan])
            home.values[step] = (value, rng.random() < 0.3)
            home.reach(step)
            assert home.kept == best_of(home.values, better), home.values
            assert len(list(best_folder(home.folder, criterion).glob("step-*.pt"))) == 1


def test_the_best_outlives_the_pruning_of_the_others(tmp_path, monkeypatch):
    home = Home(tmp_path, "entropy", monkeypatch)
    for step, value in ((1, 0.1), (2, 0.5), (3, 0.6), (4, 0.7)):
        home.values[step] = (value, False)
        home.reach(step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*.pt")) == [
        "step-000003.pt",
        "step-000004.pt",
    ]
    assert home.kept == 1
    assert json.loads((best_folder(tmp_path, "entropy") / "best.json").read_text())["best"] == 1


def test_without_links_the_file_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(best_module.os, "link", refuse)
    home = Home(tmp_path, "entropy", monkeypatch)
    home.values[3] = (0.5, False)
    home.reach(3)
    assert home.kept == 3


def test_a_record_that_is_damaged_is_begun_again(tmp_path, monkeypatch):
    home = Home(tmp_path, "entropy", monkeypatch)
    home.values = {1: (0.5, False), 2: (0.6, False)}
    home.reach(1)
    (best_folder(tmp_path, "entropy") / "best.json").write_text('{"steps": [')
    home.reach(2)
    assert home.kept == 2
    assert list(read_record(tmp_path, "entropy")["steps"]) == ["2"]


def test_the_criteria_are_those_of_select_and_a_misspelt_one_is_refused():
    assert list(get_args(Criterion)) == [each.name for each in CRITERIA]
    for each in CRITERIA:
        assert recipe_of(each.name).machine.keep_best == each.name
    with pytest.raises(RecipeError, match="did you mean 'entropy'"):
        recipe_of("entrpy")
    with pytest.raises(RecipeError, match=r"keep_best.*no teacher"):
        recipe_of("teacher", "minent")


@pytest.mark.parametrize("criterion", ["infomax", "flip", "source"])
def test_no_label_of_the_target_is_opened(root, tmp_path, monkeypatch, criterion):
    recipe = recipe_of(criterion)
    sets = open_criterion_sets(recipe, root)
    assert sets.labelled is None
    assert (sets.source is None) == (criterion != "source")
    real, opened = PreparedDataset.label_path, []

    def label_path(self, sample):
        opened.append(self.name)
        return real(self, sample)

    monkeypatch.setattr(PreparedDataset, "label_path", label_path)
    source, _ = toy_pair(root)
    setup = SimpleNamespace(
        objective=SimpleNamespace(student=small_segmenter(classes=13)), device=torch.device("cpu")
    )
    path = tmp_path / "checkpoints" / "step-000001.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    path.with_suffix(".json").write_text("{}")
    value = KeepBest(recipe, sets, source.classes, tmp_path).consider(setup, path, 1)
    assert 0 <= value <= 1
    assert set(opened) == ({"toyland"} if criterion == "source" else set())
    assert (best_folder(tmp_path, criterion) / "step-000001.pt").read_bytes() == b"weights"


def test_a_criterion_without_its_images_is_refused_before_training(root, tmp_path):
    with pytest.raises(DataError):
        open_criterion_sets(shipped("gta5_cityscapes/dacs", ["machine.keep_best=flip"]), root)
    assert open_criterion_sets(shipped("toyland/dacs", TINY), tmp_path) is None
