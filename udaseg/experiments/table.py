"""A table of methods and classes, as Markdown, CSV and LaTeX."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udaseg.experiments.seeds import SeedStatistics
from udaseg.files import csv_text
from udaseg.runs.run import Run
from udaseg.text import markdown_cell

_CSV = ["method", "score", "seeds", "mean_percent", "spread_percent"]
_ALL_MEASURED = "mIoU"  # the mean over whatever classes were measured; others name their number
_CSV_DIFFERENCE = ["difference_points", "low_points", "high_points"]
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Difference:
    """How far a score is above that of the baseline, as a fraction.

    Attributes:
        mean: Difference of the means over the seeds.
        interval: 95 % interval over resamples of the images; None if it cannot be computed.
    """

    mean: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class MethodScores:
    """A row of the table: runs that differ only in their seeds.

    Attributes:
        iou: IoU of each class over the seeds.
        means: Mean IoUs over the seeds, such as `mIoU-19`.
        differences: By class and mean, to the baseline; empty for the baseline and without one.
    """

    name: str
    runs: tuple[Run, ...]
    iou: Mapping[str, SeedStatistics]
    means: Mapping[str, SeedStatistics]
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, SeedStatistics]:
        """The scores of all classes, then the means."""
        return {**self.iou, **self.means}

    @property
    def measured(self) -> frozenset[str]:
        """The classes that were measured with some seed."""
        return frozenset(name for name, score in self.iou.items() if score.mean is not None)

    def is_comparable(self, other: "MethodScores", name: str) -> bool:
        """Return whether a score is over the same classes in both rows."""
        return name != _ALL_MEASURED or self.measured == other.measured


@dataclass(frozen=True)
class RunTable:
    """Scores of several methods on the same data.

    Attributes:
        methods: The rows; the baseline, if there is one, is the first.
        evaluation: Name of the evaluation that is compared, such as `cityscapes-val`.
        baseline: Name of the row that the others are compared with.
        notes: Sentences on how to read the numbers, and on what is missing.

    Example:
        table = udaseg.compare_runs(["runs/rccr", "runs/dacs"], baseline="runs/source_only")
        table.methods[1].means["mIoU-19"].mean, table.methods[1].differences["mIoU-19"].interval
        Path("table.tex").write_text(table.to_latex())
    """

    methods: Sequence[MethodScores]
    evaluation: str
    baseline: str | None = None
    notes: Sequence[str] = ()

    @property
    def score_names(self) -> tuple[str, ...]:
        """All classes, then all means, in the order of the first row that has them."""
        classes = dict.fromkeys(name for method in self.methods for name in method.iou)
        means = dict.fromkeys(name for method in self.methods for name in method.means)
        return (*classes, *means)

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object, as fractions; null where not measured."""
        rows = [
            {
                "name": method.name,
                "runs": [str(run.path) for run in method.runs],
                "scores": {name: score.to_json() for name, score in method.scores.items()},
                "differences": {name: vars(each) for name, each in method.differences.items()},
            }
            for method in self.methods
        ]
        return {**vars(self), "methods": rows, "notes": list(self.notes)}

    def to_csv(self) -> str:
        """Return a line for each method and score, in percent; empty where not measured."""
        lines = [[*_CSV, *_CSV_DIFFERENCE * (self.baseline is not None)]]
        for method in self.methods:
            for name, score in method.scores.items():
                count = sum(not math.isnan(value) for value in score.values)
                row = [method.name, name, str(count), *map(_percent, (score.mean, score.spread))]
                if self.baseline is not None:
                    difference = method.differences.get(name)
                    low, high = (difference and difference.interval) or (None, None)
                    mean = None if difference is None else difference.mean
                    row += map(_percent, (mean, low, high))
                lines.append(row)
        return csv_text(lines)

    def to_markdown(self) -> str:
        """Return a row for each method and a column for each class, in percent; best in bold."""
        names = map(markdown_cell, self.score_names)
        head = ["method", *names, *self._difference_titles()]
        lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        for method in self.methods:
            cells = [markdown_cell(method.name)]
            for name in self.score_names:
                mean, spread = self.texts(method, name, 2)
                bold = f"**{mean}**" if self.is_best(method, name) else mean
                cells.append(f"{bold} ± {spread}" if spread else bold)
            cells += [self.difference_text(method, name, 2) for name in self._difference_names()]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", *self.notes]).rstrip()

    def to_latex(self) -> str:
        """Return the same as `to_markdown` as a `tabular`, with one digit after the point."""
        names = [f"\\rotatebox{{90}}{{{_latex(name)}}}" for name in self.score_names]
        head = ["method", *names, *map(_latex, self._difference_titles())]
        lines = [f"% {note}" for note in ("needs booktabs and graphicx", *self.notes)]
        lines += [f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", "\\toprule"]
        lines += [f"{' & '.join(head)} \\\\", "\\midrule"]
        for method in self.methods:
            cells = [_latex(method.name)]
            for name in self.score_names:
                mean, spread = self.texts(method, name, 1)
                bold = f"\\textbf{{{mean}}}" if self.is_best(method, name) else mean
                cells.append(f"{bold}{{\\scriptsize$\\pm${spread}}}" if spread else bold)
            cells += [self.difference_text(method, name, 1) for name in self._difference_names()]
            lines.append(f"{' & '.join(cells)} \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])

    def is_best(self, method: MethodScores, name: str) -> bool:
        """Return whether no method has a higher mean of this score, of two or more.

        None is the best where the score is over other classes in some rows.
        """
        rivals = [each for each in self.methods if name in each.scores]
        if not all(method.is_comparable(each, name) for each in rivals):
            return False
        means = [each.scores[name].mean for each in rivals]
        known = [mean for mean in means if mean is not None]
        mine = method.scores[name].mean if name in method.scores else None
        return len(known) > 1 and mine is not None and mine == max(known)

    def difference_text(self, method: MethodScores, name: str, digits: int) -> str:
        """Return the difference to the baseline in points, with its interval; `-` without one."""
        difference = method.differences.get(name)
        if difference is None:
            return "-"
        mean = f"{100 * difference.mean:+.{digits}f}"
        if difference.interval is None:
            return mean
        low, high = (f"{100 * value:.{digits}f}" for value in difference.interval)
        return f"{mean} [{low}, {high}]"

    def _difference_names(self) -> list[str]:
        """Return the means with a column for the difference: the first one, with a baseline."""
        means = [name for method in self.methods for name in method.means]
        return means[:1] if self.baseline is not None else []

    def _difference_titles(self) -> list[str]:
        return [f"{name} - {self.baseline}" for name in self._difference_names()]

    def texts(self, method: MethodScores, name: str, digits: int) -> tuple[str, str]:
        """Return mean and spread of a score; `-` and "" where there is none."""
        score = method.scores.get(name, SeedStatistics(()))
        mean = "-" if score.mean is None else f"{100 * score.mean:.{digits}f}"
        return mean, "" if score.spread is None else f"{100 * score.spread:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _latex(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^]", lambda match: _LATEX[match.group()], text)
