"""Prints what `udaseg.features` returns."""

from typing import TYPE_CHECKING

from rich.table import Table

from udaseg.display.console import print_line, safe_text, show_table

if TYPE_CHECKING:
    from udaseg import Features


def print_features(seen: "Features") -> None:
    """Print facts, tables and notes."""
    for name, fact in seen.facts.items():
        print_line(f"{name}: {fact}")
    for table in seen.tables:
        shown = Table("class", title=safe_text(table.title), title_justify="left", title_style="")
        for column in table.columns:
            shown.add_column(safe_text(column), justify="right")
        for name, texts in table.texts().items():
            shown.add_row(safe_text(name), *texts.values())
        show_table(shown)
    for note in seen.notes:
        print_line(note)
    print_line(f"{seen.folder}: features.png, points.csv and the tables")
