"""Score tables on a terminal: all values are shown, and NaN is printed as `-`."""

import io

from rich.console import Console

from tests.runs.test_scores import SCORES
from udaseg.cli.printing.scores import score_table
from udaseg.demo import comparison_table
from udaseg.runs.scores import Scores


def shown(table, width=100):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(table)
    return console.file.getvalue()


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
