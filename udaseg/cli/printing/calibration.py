"""Prints what `udaseg.calibrate` returns."""

from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.display.console import open_console, safe_text
from udaseg.text import percent

if TYPE_CHECKING:
    from udaseg import Calibration


def print_calibration(calibration: "Calibration") -> None:
    """Print the temperature, and how well confidence matches accuracy before and after."""
    table = Table(title=f"temperature {calibration.temperature:.3f}", title_justify="left")
    table.add_column("pixels of")
    for heading in ("", "accuracy %", "confidence %", "ECE %", "NLL"):
        table.add_column(heading, justify="right")
    for row in calibration.rows:
        for stage, statistics in (("before", row.before), ("after", row.after)):
            label = row.description if stage == "before" else f"{statistics.pixels:,} of them"
            shares = (statistics.accuracy, statistics.confidence, statistics.error)
            table.add_row(safe_text(label), stage, *map(percent, shares), f"{statistics.nll:.3f}")
    console = open_console()
    console.print(table)
    for row in calibration.rows:
        if row.note:
            console.print(safe_text(f"{row.description}: {row.note}"), soft_wrap=True)
