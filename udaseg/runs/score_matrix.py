"""The scores of one run on several data sets, as one table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from udaseg.files import csv_text, plain_json
from udaseg.runs.scores import Scores
from udaseg.text import markdown_cell, percent

AVERAGE = "average"


@dataclass(frozen=True)
class ScoreMatrix:
    """The scores of one run on several data sets: classes in rows, data sets in columns.

    Attributes:
        scores: The scores by the name of the data set, in the order in which they were asked for.

    Example:
        matrix = udaseg.evaluate_each("runs/city-rccr", ["acdc", "bdd100k"])
        matrix.scores["acdc"].miou, matrix.average["mIoU-19"]
        print(matrix.to_markdown())
    """

    scores: Mapping[str, Scores]

    @property
    def iou(self) -> dict[str, dict[str, float]]:
        """IoU of each class on each data set and on average; NaN where not measured."""
        return _table({name: scores.iou for name, scores in self.scores.items()})

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Each mean IoU on each data set and on average; NaN where a data set has no such mean."""
        return _table({name: scores.means for name, scores in self.scores.items()})

    @property
    def average(self) -> dict[str, float]:
        """Each mean IoU, averaged over the data sets; NaN if one of them has no such mean."""
        return {name: row[AVERAGE] for name, row in self.means.items()}

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the columns with numbers."""
        return (*self.scores, AVERAGE)

    @property
    def baseline(self) -> "ScoreMatrix | None":
        """The scores of the baseline, where that is better; see `Scores`."""
        scores = {name: each.baseline for name, each in self.scores.items() if each.baseline}
        return ScoreMatrix(scores) if scores else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of the scores of each data set by its name, and the averages."""
        data = {name: scores.to_json() for name, scores in self.scores.items()}
        document: dict[str, Any] = plain_json({"data": data, "average": self.average})
        return document

    def to_csv(self) -> str:
        """Return the IoUs and means as CSV in percent, empty if not measured; protocols last."""
        lines = [["iou_percent", *self.titles]]
        for name, row in (self.iou | self.means).items():
            numbers = ("" if math.isnan(value) else percent(value) for value in row.values())
            lines.append([name, *numbers])
        for scores in self.scores.values():
            lines.append([f"# {scores.protocol_line}", *("" for _ in self.titles)])
        return csv_text(lines)

    def to_markdown(self) -> str:
        """Return the IoUs and means as a Markdown table in percent, with the protocols."""
        titles = ("IoU %", *map(markdown_cell, self.titles))
        lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * len(self.titles) + "|"]
        for name, row in self.iou.items():
            numbers = (percent(row[title]) for title in self.titles)
            lines.append(f"| {' | '.join((markdown_cell(name), *numbers))} |")
        for name, row in self.means.items():
            numbers = (f"**{percent(row[title])}**" for title in self.titles)
            lines.append(f"| {' | '.join((f'**{name}**', *numbers))} |")
        lines += ["", *(each.protocol_line for each in self.scores.values())]
        return "\n".join([*lines, *(["", self.baseline.to_markdown()] if self.baseline else [])])


def _table(columns: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return rows of columns, and of their average; a row that a column lacks is NaN in both."""
    rows: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(key for column in columns.values() for key in column):
        values = {title: column.get(name, math.nan) for title, column in columns.items()}
        rows[name] = {**values, AVERAGE: sum(values.values()) / len(values)}
    return rows
