"""The console of the commands, and text that any terminal can show."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from udaseg.text import printable


def open_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return a console that does not highlight numbers and paths."""
    return Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False)


def print_line(text: str) -> None:
    """Print text on stdout as it is, for people and pipes: not wrapped, but escaped."""
    open_console(soft_wrap=True).print(safe_text(text))


def print_json(document: Mapping[str, Any]) -> None:
    """Print an object as JSON on stdout."""
    print_line(json.dumps(document, indent=2))


def safe_text(text: str, style: str = "") -> Text:
    """Return `text` for a console, with control and invisible characters escaped.

    Escaped before rich sees it: `Text` drops some of these characters, and measures the others.
    """
    return Text(printable(text), style=style)
