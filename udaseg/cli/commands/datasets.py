"""The `udaseg datasets` commands."""

from pathlib import Path

import typer

from udaseg.cli.command import Command, Group
from udaseg.cli.options import OutputFormat, Root
from udaseg.display.console import print_json, print_line, safe_text, show_table
from udaseg.text import count_text

datasets_app = typer.Typer(cls=Group, no_args_is_help=True, help="List the data sets.")


@datasets_app.command("ls", cls=Command)
def show_datasets(root: Root = Path("data"), output_format: OutputFormat = "table") -> None:
    """List the built-in and the prepared data sets."""
    from rich.table import Table

    import udaseg

    entries = udaseg.list_datasets(root)
    if output_format == "json":
        print_json([entry.to_json() for entry in entries])
        return
    table = Table("name", "state", "images", "what", box=None, pad_edge=False)
    for entry in entries:
        counts = ", ".join(f"{split} {count:,}" for split, count in entry.images.items())
        table.add_row(*map(safe_text, (entry.name, entry.state, counts, entry.title)))
    show_table(table)
    ready = sum(entry.state in ("prepared", "generated") for entry in entries)
    print_line(
        f"\n{count_text(ready, 'data set')} ready. `udaseg prepare NAME` prepares one that is "
        "found, and says of one that is missing where to get it"
    )
