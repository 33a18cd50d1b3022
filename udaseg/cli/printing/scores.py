"""Prints what `udaseg.evaluate`, `udaseg.score_predictions` and `udaseg.submit` return."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rich.table import Table

from udaseg.display.console import print_json, print_line, safe_text, show_table
from udaseg.text import format_size, percent

if TYPE_CHECKING:
    from udaseg import ScoreMatrix, Scores, Submission

_Shown = TypeVar("_Shown", "Scores", "ScoreMatrix")


def print_scores(scores: "Scores", output_format: str = "table") -> None:
    """Print scores as `table`, `json`, `csv` or `md`."""
    _print(scores, score_table, output_format)


def print_matrix(matrix: "ScoreMatrix", output_format: str) -> None:
    """Print the scores on several data sets as `table`, `json`, `csv` or `md`."""
    _print(matrix, matrix_table, output_format)


def _print(scores: _Shown, table: Callable[[_Shown], Table], output_format: str) -> None:
    """Print scores, with those of the baseline if there are any."""
    match output_format:
        case "table":
            show_table(table(scores))
            if scores.baseline is not None:
                show_table(table(scores.baseline))
        case "json":
            print_json(scores.to_json())
        case "csv":
            print_line(scores.to_csv())
        case _:
            print_line(scores.to_markdown())


def score_table(scores: "Scores") -> Table:
    """Return the table of class scores in percent, with protocol, means and notes."""
    table = Table(title=safe_text(scores.protocol_line), title_justify="left", title_style="")
    table.add_column("class")
    for title in ("IoU %", "accuracy %", "pixels %"):
        table.add_column(title, justify="right")
    columns = (scores.iou, scores.accuracy, scores.truth_share)
    for name in scores.iou:
        table.add_row(safe_text(name), *(percent(column[name]) for column in columns))
    table.add_section()
    for name, mean in scores.means.items():
        table.add_row(safe_text(name, "bold"), safe_text(percent(mean), "bold"))
    table.add_row("pixel accuracy", "", percent(scores.pixel_accuracy))
    if scores.notes:
        table.caption = safe_text("\n".join(scores.notes))
        table.caption_justify = "left"
    return table


def matrix_table(matrix: "ScoreMatrix") -> Table:
    """Return the table of IoUs in percent, one column for each data set, with the protocols."""
    table = Table("IoU %", caption_justify="left")
    for title in matrix.titles:
        table.add_column(safe_text(title), justify="right")
    for name, row in matrix.iou.items():
        table.add_row(safe_text(name), *map(percent, row.values()))
    table.add_section()
    for name, row in matrix.means.items():
        table.add_row(*(safe_text(text, "bold") for text in (name, *map(percent, row.values()))))
    lines = (line for each in matrix.scores.values() for line in (each.protocol_line, *each.notes))
    table.caption = safe_text("\n".join(lines))
    return table


def print_submission(submission: "Submission") -> None:
    """Print where the package is, what was checked, and where to submit it."""
    server = submission.server
    folders = ", ".join(folder for folder in server.folders if folder)
    lines = [
        f"{submission.path}: {submission.path.stat().st_size / 1e6:.1f} MB",
        f"checked: {submission.images} images{f' in each of {folders}' if folders else ''}, all "
        f"of {format_size(server.size)}, {server.ids} ids, named as the server requires, no other "
        "files in the zip",
    ]
    if submission.images != server.images:
        lines.append(f"but the test set of {server.name} has {server.images} images")
    lines.append(f"submit it at {server.url}")
    print_line("\n".join(lines))
