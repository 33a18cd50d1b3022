"""Prints what `udaseg.evaluate`, `udaseg.score_predictions` and `udaseg.submit` return."""

import json
from typing import TYPE_CHECKING

from udaseg.display.console import open_console, safe_text
from udaseg.display.score_tables import score_table
from udaseg.text import format_size

if TYPE_CHECKING:
    from udaseg import Scores, Submission


def print_scores(scores: "Scores", output_format: str = "table") -> None:
    """Print scores as `table`, `json`, `csv` or `md`."""
    if output_format == "table":
        open_console().print(score_table(scores))
        return
    if output_format == "json":
        text = json.dumps(scores.to_json(), indent=2)
    else:
        text = scores.to_csv() if output_format == "csv" else scores.to_markdown()
    open_console(soft_wrap=True).print(text, markup=False)


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
    open_console(soft_wrap=True).print(safe_text("\n".join(lines)))
