"""Format scores as tables for the terminal, and as JSON, CSV and Markdown."""

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from udaseg.display.console import safe_text
from udaseg.runs.scores import Scores
from udaseg.text import percent


def score_table(scores: Scores) -> Table:
    """Return the table of class scores for the terminal."""
    table = Table(title=safe_text(protocol_line(scores)), title_justify="left", title_style="")
    table.add_column("class")
    for title in ("IoU %", "accuracy %", "pixels %"):
        table.add_column(title, justify="right")
    for row in _rows(scores):
        table.add_row(safe_text(row[0]), *row[1:])
    table.add_section()
    for label, mean in scores.means.items():
        table.add_row(
            safe_text(label, style="bold"), safe_text(percent(mean), style="bold"), "", ""
        )
    table.add_row("pixel accuracy", "", percent(scores.pixel_accuracy), "")
    if scores.notes:
        table.caption = safe_text("\n".join(scores.notes))
        table.caption_justify = "left"
    return table


def protocol_line(scores: Scores) -> str:
    """Return the evaluation protocol in one line."""
    return " · ".join(f"{key} {value}" for key, value in scores.protocol.items())


def as_json(scores: Scores) -> str:
    """Return the scores as JSON with the whole confusion matrix."""
    return json.dumps(_nan_to_null(scores.to_json()), indent=2, allow_nan=False)


def as_csv(scores: Scores) -> str:
    """Return the table as CSV in percent, empty if not measured; the last row is the protocol."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "iou_percent", "accuracy_percent", "truth_share_percent"])
    for row in _rows(scores):
        writer.writerow([row[0], *("" if part == "-" else part for part in row[1:])])
    for label, mean in scores.means.items():
        writer.writerow([label, "" if math.isnan(mean) else percent(mean), "", ""])
    writer.writerow([f"# {protocol_line(scores)}", "", "", ""])
    return buffer.getvalue()


def as_markdown(scores: Scores) -> str:
    """Return the table as Markdown."""
    lines = [protocol_line(scores), "", "| class | IoU % | accuracy % | pixels % |"]
    lines.append("|---|---:|---:|---:|")
    lines += [f"| {' | '.join(row)} |" for row in _rows(scores)]
    lines += [f"| **{label}** | **{percent(mean)}** | | |" for label, mean in scores.means.items()]
    lines += ["", *scores.notes]
    return "\n".join(lines).rstrip()


def comparison_table(columns: Mapping[str, Scores]) -> Table:
    """Return a table of class IoUs in percent, one column per evaluation of the same classes."""
    table = Table()
    table.add_column("IoU %")
    for title in columns:
        table.add_column(safe_text(title), justify="right")
    all_scores = list(columns.values())
    for name in all_scores[0].class_names:
        table.add_row(safe_text(name), *(percent(column.iou[name]) for column in all_scores))
    table.add_section()
    for label in all_scores[0].means:
        cells = (safe_text(percent(column.means[label]), style="bold") for column in all_scores)
        table.add_row(safe_text(label, style="bold"), *cells)
    return table


def _rows(scores: Scores) -> list[tuple[str, ...]]:
    columns = (scores.iou, scores.accuracy, scores.truth_share)
    return [(name, *(percent(column[name]) for column in columns)) for name in scores.class_names]


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
