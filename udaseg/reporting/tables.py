"""Score tables: for the terminal, and as JSON, CSV and Markdown."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Scores:
    """Scores of one evaluation, ready to be shown; fractions, NaN where unmeasured.

    Attributes:
        protocol: What was scored and how, in order of showing.
        names: Class names.
        iou: Of each class.
        accuracy: Of each class.
        share: Of each class in the labelled pixels.
        means: Mean IoU by label, such as `mIoU-19`.
        pixel_accuracy: Of all labelled pixels.
        confusion: Rows truth, columns prediction.
        notes: Sentences below the table.
    """

    protocol: Mapping[str, str]
    names: Sequence[str]
    iou: Sequence[float]
    accuracy: Sequence[float]
    share: Sequence[float]
    means: Mapping[str, float]
    pixel_accuracy: float
    confusion: Sequence[Sequence[int]]
    notes: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON values; fractions, null where unmeasured."""
        rows = zip(self.names, self.iou, self.accuracy, self.share, strict=True)
        return {
            "protocol": dict(self.protocol),
            "classes": [
                {"name": name, "iou": iou, "accuracy": accuracy, "truth_share": share}
                for name, iou, accuracy, share in rows
            ],
            "means": dict(self.means),
            "pixel_accuracy": self.pixel_accuracy,
            "confusion": [list(row) for row in self.confusion],
            "notes": list(self.notes),
        }


def percent(value: float) -> str:
    """Return a fraction as percent with two digits, `-` when it was not measured."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def score_table(scores: Scores) -> Table:
    """Return the table of classes for the terminal."""
    table = Table(title=Text(protocol_line(scores)), title_justify="left", title_style="")
    table.add_column("class")
    for title in ("IoU %", "accuracy %", "share of truth %"):
        table.add_column(title, justify="right")
    for row in _rows(scores):
        table.add_row(Text(row[0]), *row[1:])
    table.add_section()
    for label, mean in scores.means.items():
        table.add_row(Text(label, style="bold"), Text(percent(mean), style="bold"), "", "")
    table.add_row("pixel accuracy", "", percent(scores.pixel_accuracy), "")
    if scores.notes:
        table.caption = Text("\n".join(scores.notes))
        table.caption_justify = "left"
    return table


def protocol_line(scores: Scores) -> str:
    """Return what was scored and how in one line."""
    return " · ".join(f"{key} {value}" for key, value in scores.protocol.items())


def as_json(scores: Scores) -> str:
    """Return the scores as JSON with the whole confusion matrix."""
    return json.dumps(_null(scores.document()), indent=2, allow_nan=False)


def as_csv(scores: Scores) -> str:
    """Return the table as CSV, in percent, empty where unmeasured; the last row is the protocol."""
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
    lines = [protocol_line(scores), "", "| class | IoU % | accuracy % | share of truth % |"]
    lines.append("|---|---:|---:|---:|")
    lines += [f"| {' | '.join(row)} |" for row in _rows(scores)]
    lines += [f"| **{label}** | **{percent(mean)}** | | |" for label, mean in scores.means.items()]
    lines += ["", *scores.notes]
    return "\n".join(lines).rstrip()


def comparison_table(columns: Mapping[str, Scores]) -> Table:
    """Return class IoUs of several evaluations over the same classes, side by side, in percent."""
    table = Table()
    table.add_column("IoU %")
    for title in columns:
        table.add_column(Text(title), justify="right")
    scores = list(columns.values())
    for index, name in enumerate(scores[0].names):
        table.add_row(Text(name), *(percent(each.iou[index]) for each in scores))
    table.add_section()
    for label in scores[0].means:
        cells = (Text(percent(each.means[label]), style="bold") for each in scores)
        table.add_row(Text(label, style="bold"), *cells)
    return table


def _rows(scores: Scores) -> list[tuple[str, str, str, str]]:
    columns = zip(scores.names, scores.iou, scores.accuracy, scores.share, strict=True)
    return [
        (name, percent(iou), percent(accuracy), percent(share))
        for name, iou, accuracy, share in columns
    ]


def _null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
