"""Prints what `udaseg.sweep` and `udaseg.compare_runs` return."""

from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.display.console import print_json, print_line, safe_text, show_table
from udaseg.text import count_text

if TYPE_CHECKING:
    from udaseg import RunTable, Sweep


def print_table(table: "RunTable", output_format: str = "table") -> None:
    """Print a table of runs as `table`, `json`, `md`, `csv` or `latex`."""
    match output_format:
        case "json":
            print_json(table.to_json())
        case "csv":
            print_line(table.to_csv())
        case "md":
            print_line(table.to_markdown())
        case "latex":
            print_line(table.to_latex())
        case _:
            show_table(_score_table(table))
            if table.baseline is not None:
                show_table(_difference_table(table))
            for note in table.notes:
                print_line(note)


def print_sweep(sweep: "Sweep", output_format: str) -> None:
    """Print the table of a sweep and where its files are."""
    if sweep.table is None:
        print_line("nothing was scored: the recipe has no validation data")
    else:
        print_table(sweep.table, output_format)
    if output_format == "table":
        print_line(f"{count_text(len(sweep.settings), 'setting')}: {sweep.path}")
        if sweep.curve is not None:
            print_line(f"curve: {sweep.curve}")


def print_settings(sweep: "Sweep") -> None:
    """Print the name and the folder of each setting."""
    for setting in sweep.settings:
        print_line(f"{setting.name}: {sweep.path / setting.folder}")


def _score_table(table: "RunTable") -> Table:
    """Return a row for each class and mean, and a column for each method."""
    shown = Table(title="IoU %", title_justify="left")
    shown.add_column("class")
    for method in table.methods:
        shown.add_column(safe_text(method.name), justify="right")
    means = {name for method in table.methods for name in method.means}
    for name in table.score_names:
        cells = (" ± ".join(filter(None, table.texts(each, name, 2))) for each in table.methods)
        shown.add_row(*map(safe_text, (name, *cells)), style="bold" if name in means else None)
    return shown


def _difference_table(table: "RunTable") -> Table:
    """Return a row for each method but the baseline, and a column for each mean."""
    title = f"points above {table.baseline}, and their 95 % interval"
    shown = Table(title=safe_text(title), title_justify="left")
    shown.add_column("method")
    means = list(table.methods[0].means)
    for name in means:
        shown.add_column(safe_text(name), justify="right")
    for method in table.methods[1:]:
        cells = (table.difference_text(method, name, 2) for name in means)
        shown.add_row(*map(safe_text, (method.name, *cells)))
    return shown
