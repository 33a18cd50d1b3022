"""Tables of class scores for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from udaseg.display.console import safe_text
from udaseg.text import percent


class ClassScores(Protocol):
    """What the tables show of `udaseg.Scores`."""

    @property
    def protocol_line(self) -> str:
        """Data and settings of the evaluation."""

    @property
    def iou(self) -> Mapping[str, float]:
        """IoU of each class, by name."""

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Accuracy of each class."""

    @property
    def truth_share(self) -> Mapping[str, float]:
        """Share of the labelled pixels of each class."""

    @property
    def means(self) -> Mapping[str, float]:
        """Mean IoUs by name."""

    @property
    def pixel_accuracy(self) -> float:
        """Accuracy over all labelled pixels."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences to show below the table."""


def score_table(scores: ClassScores) -> Table:
    """Return the table of class scores in percent, with protocol, means and notes."""
    table = Table(title=safe_text(scores.protocol_line), title_justify="left", title_style="")
    table.add_column("class")
    for title in ("IoU %", "accuracy %", "pixels %"):
        table.add_column(title, justify="right")
    columns = (scores.iou, scores.accuracy, scores.truth_share)
    for name in scores.iou:
        table.add_row(safe_text(name), *(percent(column[name]) for column in columns))
    table.add_section()
    for label, mean in scores.means.items():
        table.add_row(*_mean_cells(label, [mean]), "", "")
    table.add_row("pixel accuracy", "", percent(scores.pixel_accuracy), "")
    if scores.notes:
        table.caption = safe_text("\n".join(scores.notes))
        table.caption_justify = "left"
    return table


def comparison_table(columns: Mapping[str, ClassScores]) -> Table:
    """Return a table of class IoUs in percent, one column per evaluation of the same classes."""
    table = Table()
    table.add_column("IoU %")
    for title in columns:
        table.add_column(safe_text(title), justify="right")
    all_scores = list(columns.values())
    for name in all_scores[0].iou:
        table.add_row(safe_text(name), *(percent(scores.iou[name]) for scores in all_scores))
    table.add_section()
    for label in all_scores[0].means:
        table.add_row(*_mean_cells(label, [scores.means[label] for scores in all_scores]))
    return table


def _mean_cells(label: str, means: Sequence[float]) -> list[Text]:
    return [safe_text(text, style="bold") for text in (label, *map(percent, means))]
