"""Names of files, classes and runs reach a terminal escaped, and keep tables aligned."""

import re

import pytest
from rich.console import Console
from rich.table import Table

from udaseg.display.console import open_console, safe_text, show_table


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x\a.png", r"x\x07.png"),
        ("x\b\v\f.png", r"x\x08\x0b\x0c.png"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\u202eb", r"a\u202eb"),
        ("good\rbad", r"good\rbad"),
        ("[bold]a", "[bold]a"),
    ],
)
def test_what_a_terminal_would_interpret_is_escaped(name, shown, capsys):
    open_console(soft_wrap=True).print(safe_text(name))
    assert capsys.readouterr().out.rstrip("\n") == shown


def test_a_table_with_an_escaped_name_stays_aligned(capsys):
    table = Table("name", "value")
    table.add_row(safe_text("q\x1b\u202eb"), "1")
    table.add_row(safe_text("plain"), "2")
    open_console().print(table)
    widths = {len(line) for line in capsys.readouterr().out.splitlines()}
    assert len(widths) == 1


def test_a_table_in_a_pipe_is_neither_wrapped_nor_cut(capsys):
    long, title = "a" * 300, "one " * 60
    table = Table("IoU %", title=safe_text(title), caption=safe_text(f"note {title}"))
    table.add_row(safe_text(long))
    show_table(table)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == title.rstrip()
    assert printed[-1] == f"note {title}".rstrip()
    assert sum(long in line for line in printed) == 1


def test_a_table_in_a_narrow_terminal_is_folded_not_cut(capsys, monkeypatch):
    monkeypatch.setattr("udaseg.display.console.open_console", lambda: Console(width=20))
    table = Table("name", "what")
    table.add_row(safe_text("sum"), safe_text("0123456789abcdef" * 2))
    show_table(table)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "".join(re.findall("[0-9a-f]{4,}", printed)) == "0123456789abcdef" * 2
