"""Prints what `udaseg.evaluate`, `udaseg.score_predictions` and `udaseg.submit` return."""

from typing import TYPE_CHECKING

from udaseg.display.console import open_console, print_json, print_line
from udaseg.display.score_tables import score_table
from udaseg.text import format_size

if TYPE_CHECKING:
    from udaseg import Scores, Submission


def print_scores(scores: "Scores", output_format: str = "table") -> None:
    """Print scores as `table`, `json`, `csv` or `md`."""
    match output_format:
        case "table":
            open_console().print(score_table(scores))
        case "json":
            print_json(scores.to_json())
        case "csv":
            print_line(scores.to_csv())
        case _:
            print_line(scores.to_markdown())


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
