"""The scores of a run on a data set, as its folder stores them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg.files import csv_text, parse_json, plain_json
from udaseg.runs.image_counts import ImageCounts
from udaseg.text import markdown_cell, percent


@dataclass(frozen=True)
class Scores:
    """Scores of one evaluation as fractions; NaN where not measured.

    Attributes:
        protocol: Data and settings of the evaluation, in display order.
        iou: IoU of each class, by name.
        accuracy: Accuracy of each class.
        truth_share: Share of the labelled pixels of each class.
        means: Mean IoUs by name, such as `mIoU-19`.
        pixel_accuracy: Accuracy over all labelled pixels.
        confusion: Rows are ground truth, columns are predictions.
        notes: Sentences to show below the table.
        images: Counts of each image; None if they are not known, as for scores from a file.
        baseline: Scores of the baseline, if the run says that the adaptation is worse than it (see
            `worth_it`); None otherwise.

    Example:
        scores = udaseg.evaluate("runs/city-rccr", data="my_val.yaml")
        scores.miou, scores.iou["road"]
        Path("scores.csv").write_text(scores.to_csv())
    """

    protocol: Mapping[str, str]
    iou: Mapping[str, float]
    accuracy: Mapping[str, float]
    truth_share: Mapping[str, float]
    means: Mapping[str, float]
    pixel_accuracy: float
    confusion: Sequence[Sequence[int]]
    notes: Sequence[str] = ()
    images: ImageCounts | None = field(default=None, repr=False, compare=False)
    baseline: "Scores | None" = field(default=None, repr=False, compare=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the scored classes, in the order of the confusion matrix."""
        return tuple(self.iou)

    @property
    def miou(self) -> float:
        """The first mean IoU: over all classes, or over those of the protocol."""
        return next(iter(self.means.values()), math.nan)

    @property
    def protocol_line(self) -> str:
        """Data and settings of the evaluation in one line."""
        return " · ".join(f"{key} {value}" for key, value in self.protocol.items())

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a JSON object: fractions, null where not measured."""
        columns = {"iou": self.iou, "accuracy": self.accuracy, "truth_share": self.truth_share}
        document: dict[str, Any] = plain_json(
            {
                "protocol": self.protocol,
                "classes": [
                    {"name": name, **{key: column[name] for key, column in columns.items()}}
                    for name in self.iou
                ],
                "means": self.means,
                "pixel_accuracy": self.pixel_accuracy,
                "confusion": self.confusion,
                "notes": self.notes,
                **({} if self.baseline is None else {"baseline": self.baseline.to_json()}),
            }
        )
        return document

    def to_csv(self) -> str:
        """Return the scores as CSV in percent, empty if not measured; the protocol comes last."""
        lines = [["class", "iou_percent", "accuracy_percent", "truth_share_percent"]]
        for row in self._rows():
            lines.append([row[0], *("" if part == "-" else part for part in row[1:])])
        for label, mean in self.means.items():
            lines.append([label, "" if math.isnan(mean) else percent(mean), "", ""])
        lines.append([f"# {self.protocol_line}", "", "", ""])
        return csv_text(lines)

    def to_markdown(self) -> str:
        """Return the scores as a Markdown table in percent, with protocol and notes."""
        lines = [self.protocol_line, "", "| class | IoU % | accuracy % | pixels % |"]
        lines.append("|---|---:|---:|---:|")
        rows = [(markdown_cell(name), *numbers) for name, *numbers in self._rows()]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += [
            f"| **{label}** | **{percent(mean)}** | | |" for label, mean in self.means.items()
        ]
        lines += ["", *self.notes]
        if self.baseline is not None:
            lines += ["", self.baseline.to_markdown()]
        return "\n".join(lines).rstrip()

    def _rows(self) -> list[tuple[str, ...]]:
        columns = (self.iou, self.accuracy, self.truth_share)
        return [(name, *(percent(column[name]) for column in columns)) for name in self.iou]


def find_score_files(folder: Path) -> dict[str, Path]:
    """Return the evaluations of a run by name: plain ones first, then the newest first."""
    return {path.parent.name: path for path in plain_first(folder / "eval", "scores.json")}


def plain_first(folder: Path, name: str) -> list[Path]:
    """Return the files of a name in the folders in `folder`: plain ones first, then the newest."""
    files = [path for path in folder.glob(f"*/{name}") if path.is_file()]
    # a `+` marks other weights or options such as flip: these are not comparable with plain ones
    return sorted(files, key=lambda path: ("+" in path.parent.name, -path.stat().st_mtime))


def read_evaluations(folder: Path, warnings: list[str]) -> dict[str, Scores]:
    """Return the readable evaluations of a run by name, in the order of `find_score_files`."""
    files = find_score_files(folder)
    evaluations = {name: read_scores(path, warnings) for name, path in files.items()}
    return {name: scores for name, scores in evaluations.items() if scores is not None}


def read_scores(path: Path, warnings: list[str]) -> Scores | None:
    """Return the scores of a `scores.json`; None and a warning if it cannot be read."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        rows = document["classes"]
        confusion = [[int(count) for count in row] for row in document["confusion"]]
        square = {len(rows)} == {len(confusion), *map(len, confusion)}
        return Scores(
            protocol={str(key): str(value) for key, value in document["protocol"].items()},
            iou=_by_class(rows, "iou"),
            accuracy=_by_class(rows, "accuracy"),
            truth_share=_by_class(rows, "truth_share"),
            means={str(key): _nan_if_null(value) for key, value in document["means"].items()},
            pixel_accuracy=_nan_if_null(document["pixel_accuracy"]),
            confusion=confusion if square else [],
            notes=[str(note) for note in document["notes"]],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.append(f"{path.parent.name}/{path.name} cannot be read ({error})")
        return None


def _by_class(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    return {str(row["name"]): _nan_if_null(row[key]) for row in rows}


def _nan_if_null(value: float | None) -> float:
    return math.nan if value is None else float(value)
