"""Tables of numbers by class, for people and for files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from udaseg.files import csv_text

NumberRows = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class NumberTable:
    """Numbers by row and column; NaN where not measured.

    Attributes:
        title: What they are.
        rows: The numbers of each row by the name of their column; all rows have the same columns.

    Example:
        features.target.rows["road"]["to the source"]
    """

    title: str
    rows: NumberRows

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(next(iter(self.rows.values()), ()))

    def texts(self) -> dict[str, dict[str, str]]:
        """Return the numbers as text for people."""
        return {
            name: {column: _number_text(value) for column, value in row.items()}
            for name, row in self.rows.items()
        }

    def to_csv(self) -> str:
        """Return the numbers as CSV, empty where not measured."""
        lines = [["class", *self.columns]]
        for name, row in self.rows.items():
            numbers = ("" if math.isnan(value) else f"{value:.6g}" for value in row.values())
            lines.append([name, *numbers])
        return csv_text(lines)


def _number_text(value: float) -> str:
    """Return a number with four decimals if it is no count; `-` if not measured."""
    if math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
