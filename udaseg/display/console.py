"""The console of the commands, and text that any terminal can show."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg.text import printable

_PIPE_WIDTH = 100_000


def open_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return a console that does not highlight numbers and paths.

    In a pipe or a file, nothing is wrapped or cut.
    """
    console = Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def show_table(table: Table) -> None:
    """Print a table on stdout, with nothing cut; title and caption may be longer than its lines."""
    console = open_console()
    for column in table.columns:
        column.overflow = "fold"
    title, caption, table.title, table.caption = table.title, table.caption, None, None
    for part in (title, table, caption):
        if part:
            console.print(part)


def print_line(text: str) -> None:
    """Print text on stdout as it is, for people and pipes: not wrapped, but escaped."""
    open_console(soft_wrap=True).print(safe_text(text))


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print an object or a list as JSON on stdout."""
    print_line(json.dumps(document, indent=2))


def safe_text(text: str, style: str = "") -> Text:
    """Return `text` for a console, with control and invisible characters escaped.

    Escaped before rich sees it: `Text` drops some of these characters, and measures the others.
    """
    return Text(printable(text), style=style)
