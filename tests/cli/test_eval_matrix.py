"""`udaseg eval --data a,b` scores a run on several data sets and shows them beside each other."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import udaseg
from tests.cli.running import udaseg as command
from tests.cli.test_eval import write_city
from tests.support.colors import loaded_colors, random_labels
from tests.support.loading import replace_load
from udaseg.errors import DataError, UsageError
from udaseg.inference import run_data

TRUTH = np.repeat(np.arange(2, dtype=np.uint8), 32).reshape(8, 8)  # half road, half sky


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Provide a run and two data sets: one it predicts well, one whose sky it predicts as car."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    seen = np.where(TRUTH == 1, 2, TRUTH).astype(np.uint8)
    fog = replace(write_city(tmp_path / "fog", [TRUTH], images=[seen]), name="fog")
    night = write_city(tmp_path / "night", [random_labels(8, 8)], names=("road", "sky", "car"))
    sets = {"city": write_city(tmp_path / "city", [TRUTH]), "fog": fog}
    sets["night.yaml"] = replace(night, name="night")
    replace_load(monkeypatch, lambda path, **_: loaded_colors())

    def open_set(data, *, root):
        if data not in sets:
            raise DataError(f"{data}: no such set")
        return sets[data]

    monkeypatch.setattr(run_data, "open_dataset", open_set)
    return tmp_path


def run(home, *words, expect=0):
    return command("eval", "run", *words, cwd=home, expect=expect)


def test_each_data_set_has_a_column_and_each_row_an_average(home):
    document = json.loads(run(home, "--data", "city,fog", "--format", "json").stdout)
    # fog: road 1, sky 0 of its two classes; the third, car, has no truth in either
    assert document["data"]["city"]["means"] == {"mIoU": 1}
    assert document["data"]["fog"]["means"] == {"mIoU": 0.5}
    assert document["average"] == {"mIoU": 0.75}
    rows = list(csv.reader(io.StringIO(run(home, "--data", "city,fog", "--format", "csv").stdout)))
    assert rows[0] == ["iou_percent", "city", "fog", "average"]
    assert rows[1:5] == [
        ["road", "100.00", "100.00", "100.00"],
        ["sky", "100.00", "0.00", "50.00"],
        ["car", "", "", ""],
        ["mIoU", "100.00", "50.00", "75.00"],
    ]
    markdown = run(home, "--data", "fog,city", "--format", "md").stdout
    assert "| IoU % | fog | city | average |" in markdown
    assert "| **mIoU** | **50.00** | **100.00** | **75.00** |" in markdown
    table = run(home, "--data", "city,fog").stdout
    assert "average" in table
    assert "data fog" in " ".join(table.split())


def test_the_scores_of_each_stand_where_eval_puts_those_of_one(home):
    run(home, "--data", "city,night.yaml")
    several = {name: Path(f"run/eval/{name}-val/scores.json") for name in ("city", "night")}
    written = {name: path.read_text() for name, path in several.items()}
    for name, data in (("city", "city"), ("night", "night.yaml")):
        run(home, "--data", data)
        assert several[name].read_text() == written[name]


def test_a_wrong_name_is_told_before_anything_is_scored(home):
    assert "typo: no such set" in run(home, "--data", "city,typo", expect=3).stderr
    assert "named twice" in run(home, "--data", "city,city", expect=2).stderr
    for option in ("--save", "--out"):
        told = run(home, "--data", "city,fog", option, "here", expect=2).stderr
        assert "--save and --out are for one" in told
    assert not Path("run/eval").exists()
    with pytest.raises(UsageError, match="name one data set"):
        udaseg.evaluate_each("run", ["city"], options=udaseg.EvaluationOptions(save="here"))


def test_the_gate_is_on_the_average(home):
    run(home, "--data", "city,fog", "--fail-under", 75)
    told = run(home, "--data", "city,fog", "--fail-under", 76, expect=7).stderr
    assert "mIoU is 75.00, below --fail-under 76" in told
