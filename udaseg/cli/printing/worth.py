"""Prints what `udaseg.worth_it` returns, and what a run stores of it."""

from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.display.console import print_json, print_line, safe_text, show_table

if TYPE_CHECKING:
    from udaseg import Worth

_ANSWERS = {"better": "Yes", "worse": "No", "unclear": "Unclear", "unknown": "Unknown"}


def print_worth(worth: "Worth", output_format: str = "table") -> None:
    """Print a comparison of an adapted network with another one as `table` or `json`."""
    if output_format == "json":
        print_json(worth.to_json())
        return
    print_line(f"Was the adaptation worth it? {_ANSWERS[worth.verdict]}: {worth.reason}")
    if worth.adapted is None or worth.baseline is None:
        return
    show_table(_criteria_table(worth))
    for name, network in (("adapted", worth.adapted), ("baseline", worth.baseline)):
        print_line(f"{name}: step {network.step}, {network.checkpoint}")


def _criteria_table(worth: "Worth") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("criterion")
    for title in ("adapted", "baseline"):
        table.add_column(title, justify="right")
    table.add_column("prefers")
    for row in worth.criteria:
        values = ("-" if value is None else f"{value:.3f}" for value in (row.adapted, row.baseline))
        arrow = "↑" if row.better == "higher" else "↓"
        table.add_row(*map(safe_text, [f"{row.name} {arrow}", *values, row.prefers or "-"]))
    return table
