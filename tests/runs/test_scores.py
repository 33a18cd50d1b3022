"""Scores as JSON, CSV and Markdown: every format has the same values, and NaN is marked."""

import csv
import dataclasses
import io
import json
import math

import pytest

from udaseg.runs.scores import Scores
from udaseg.text import percent

SCORES = Scores(
    protocol={"data": "city", "split": "val", "images": "3"},
    iou={"road": 0.75, "[red]sky": 0.125, "train": math.nan},
    accuracy={"road": 0.9, "[red]sky": 0.25, "train": math.nan},
    truth_share={"road": 0.6, "[red]sky": 0.4, "train": 0.0},
    means={"mIoU": 0.4375},
    pixel_accuracy=0.64,
    confusion=[[9, 1, 0], [3, 1, 0], [0, 0, 0]],
    notes=["no truth for train: shown as - and excluded from the mean"],
)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50.00"), (1.0, "100.00"), (0.0, "0.00"), (math.nan, "-")]
)
def test_a_fraction_is_shown_as_percent_and_the_unmeasured_as_a_dash(value, text):
    assert percent(value) == text


def test_json_has_fractions_nulls_and_the_whole_matrix():
    document = json.loads(json.dumps(SCORES.to_json(), allow_nan=False))
    assert document["classes"][2] == {
        "name": "train",
        "iou": None,
        "accuracy": None,
        "truth_share": 0.0,
    }
    assert document["classes"][0]["iou"] == 0.75
    assert document["confusion"] == SCORES.confusion
    assert document["means"] == {"mIoU": 0.4375}
    assert document["protocol"]["data"] == "city"


def test_json_of_nothing_measured_is_still_json():
    nothing = Scores(
        {}, {"a": math.nan}, {"a": math.nan}, {"a": 0.0}, {"mIoU": math.nan}, math.nan, [[0]]
    )
    document = json.loads(json.dumps(nothing.to_json(), allow_nan=False))
    assert document["means"] == {"mIoU": None}
    assert document["pixel_accuracy"] is None


def test_csv_has_a_row_for_each_class_and_leaves_the_unmeasured_empty():
    rows = list(csv.reader(io.StringIO(SCORES.to_csv())))
    assert rows[0] == ["class", "iou_percent", "accuracy_percent", "truth_share_percent"]
    assert rows[1] == ["road", "75.00", "90.00", "60.00"]
    assert rows[3] == ["train", "", "", "0.00"]
    assert rows[-2] == ["mIoU", "43.75", "", ""]
    assert rows[-1] == ["# data city · split val · images 3", "", "", ""]


def test_markdown_is_a_table_of_four_columns():
    lines = SCORES.to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") == 5 for line in table)
    assert "| road | 75.00 | 90.00 | 60.00 |" in table
    assert lines[-1] == SCORES.notes[0]


def test_a_pipe_in_a_class_name_is_escaped_in_a_markdown_table():
    piped = dataclasses.replace(
        SCORES, iou={"a|b": 0.5}, accuracy={"a|b": 0.5}, truth_share={"a|b": 1.0}
    )
    assert "| a\\|b | 50.00 | 50.00 | 100.00 |" in piped.to_markdown().splitlines()
