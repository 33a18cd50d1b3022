"""Score tables: every format has the same values, and NaN is printed as `-`."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from udaseg.evaluation.tables import as_csv, as_json, as_markdown, comparison_table, score_table
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


def shown(table, width=100):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50.00"), (1.0, "100.00"), (0.0, "0.00"), (math.nan, "-")]
)
def test_a_fraction_is_shown_as_percent_and_the_unmeasured_as_a_dash(value, text):
    assert percent(value) == text


def test_the_table_shows_protocol_classes_means_and_notes():
    text = shown(score_table(SCORES))
    assert "data city · split val · images 3" in text
    row = next(line for line in text.splitlines() if "road" in line)
    assert [part for part in row.split() if part[0].isdigit()] == ["75.00", "90.00", "60.00"]
    unmeasured = next(line for line in text.splitlines() if "train" in line)
    assert unmeasured.count(" - ") == 2
    assert any("mIoU" in line and "43.75" in line for line in text.splitlines())
    assert any("pixel accuracy" in line and "64.00" in line for line in text.splitlines())
    assert "excluded from the mean" in " ".join(text.split())


def test_a_class_name_with_markup_is_shown_as_it_is():
    assert "[red]sky" in shown(score_table(SCORES))
    assert "[red]sky" in shown(comparison_table({"[b]run": SCORES}))


def test_a_narrow_terminal_still_gets_the_table():
    assert "75.00" in shown(score_table(SCORES), width=40)


def test_json_has_fractions_nulls_and_the_whole_matrix():
    document = json.loads(as_json(SCORES), parse_constant=lambda word: pytest.fail(word))
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
    document = json.loads(as_json(nothing))
    assert document["means"] == {"mIoU": None}
    assert document["pixel_accuracy"] is None


def test_csv_has_a_row_for_each_class_and_leaves_the_unmeasured_empty():
    rows = list(csv.reader(io.StringIO(as_csv(SCORES))))
    assert rows[0] == ["class", "iou_percent", "accuracy_percent", "truth_share_percent"]
    assert rows[1] == ["road", "75.00", "90.00", "60.00"]
    assert rows[3] == ["train", "", "", "0.00"]
    assert rows[-2] == ["mIoU", "43.75", "", ""]
    assert rows[-1] == ["# data city · split val · images 3", "", "", ""]


def test_markdown_is_a_table_of_four_columns():
    lines = as_markdown(SCORES).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") == 5 for line in table)
    assert "| road | 75.00 | 90.00 | 60.00 |" in table
    assert lines[-1] == SCORES.notes[0]


def test_runs_are_compared_class_by_class():
    other = Scores(
        SCORES.protocol,
        {"road": 0.5, "[red]sky": 1.0, "train": 0.1},
        SCORES.accuracy,
        SCORES.truth_share,
        {"mIoU": 0.53},
        0.7,
        SCORES.confusion,
    )
    text = shown(comparison_table({"source only": SCORES, "rccr": other}))
    row = next(line for line in text.splitlines() if "train" in line)
    assert row.replace("│", " ").split() == ["train", "-", "10.00"]
    mean = next(line for line in text.splitlines() if "mIoU" in line)
    assert mean.replace("│", " ").split() == ["mIoU", "43.75", "53.00"]
