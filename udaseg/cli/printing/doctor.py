"""Prints what `udaseg.doctor` returns."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from udaseg.display.console import safe_text
from udaseg.text import count_text

if TYPE_CHECKING:
    from udaseg import Diagnosis, Finding, SetStatistics

_COLORS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_INDENT = 9
_MAX_INFO_EXAMPLES = 2  # examples per finding of severity info
_MAX_AMOUNTS = 10
_MAX_SIZES = 3
_SMALLEST_SHARE = 1e-4
_KIND_NAMES = {"declared": "own files", "prepared": "prepared", "folder": "folder of images"}


def print_diagnosis(console: Console, diagnosis: "Diagnosis") -> None:
    """Print tables of the data sets, and each finding with its first files and its fix."""
    console.print(_facts_table(diagnosis.sets))
    classes = _class_table(diagnosis.sets)
    if classes is not None:
        console.print(classes)
    folders = [facts.folder for facts in diagnosis.sets]
    for finding in diagnosis.findings:
        _print_finding(console, finding, folders)
    counts = Counter[str](finding.severity for finding in diagnosis.findings)
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    summary = ", ".join(count_text(counts[severity], noun) for severity, noun in nouns.items())
    images = sum(split.images for facts in diagnosis.sets for split in facts.splits.values())
    console.print(safe_text(f"\n{summary}; checked {images:,} images in {diagnosis.seconds:.1f} s"))


def _facts_table(sets: Sequence["SetStatistics"]) -> Table:
    """Return a table of the properties of each set, one column per set."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    for _ in sets:
        table.add_column(overflow="fold")
    if len(sets) > 1:
        table.add_row("", *(safe_text(facts.role, style="bold") for facts in sets))
    rows = {
        "data": [f"{facts.name} ({_KIND_NAMES[facts.kind]})" for facts in sets],
        "images": ["\n".join(_split_lines(facts)) for facts in sets],
        "sizes": [_sizes_text(facts) for facts in sets],
        "colour": [_color_text(facts) for facts in sets],
        "in": [str(facts.folder) for facts in sets],
    }
    for title, texts in rows.items():
        table.add_row(title, *map(safe_text, texts))
    return table


def _split_lines(facts: "SetStatistics") -> list[str]:
    lines = []
    for name, split in facts.splits.items():
        labels = "labelled" if split.labelled == split.images else f"{split.labelled} labelled"
        lines.append(f"{name} {split.images:,}, {labels if split.labelled else 'no labels'}")
    return lines


def _sizes_text(facts: "SetStatistics") -> str:
    sizes = sum((split.sizes for split in facts.splits.values()), Counter[tuple[int, int]]())
    if not sizes:
        return "no readable image"
    listed = ", ".join(
        f"{width}x{height} ({count:,})" for (width, height), count in sizes.most_common(_MAX_SIZES)
    )
    return listed + (f" and {len(sizes) - _MAX_SIZES} more" if len(sizes) > _MAX_SIZES else "")


def _color_text(facts: "SetStatistics") -> str:
    if facts.mean is None or facts.spread is None:
        return "-"
    mean = " ".join(f"{channel:.0f}" for channel in facts.mean)
    spread = " ".join(f"{channel:.0f}" for channel in facts.spread)
    return f"mean RGB {mean}\nspread   {spread}"


def _class_table(sets: Sequence["SetStatistics"]) -> Table | None:
    """Return a table of each class's share of the labels, per set; None if no set has labels."""
    shares = {facts.role: _shares(facts) for facts in sets if facts.class_pixels}
    if not shares:
        return None
    table = Table()
    table.add_column("class")
    for role in shares:
        table.add_column("share" if role == "data" else role, justify="right")
    for name in dict.fromkeys(itertools.chain(*shares.values())):
        cells = [share_by_class.get(name, "no such class") for share_by_class in shares.values()]
        table.add_row(safe_text(name), *cells)
    return table


def _shares(facts: "SetStatistics") -> dict[str, str]:
    total = max(1, sum(facts.class_pixels.values()))
    return {
        name: _percent(count / total) if count else "never"
        for name, count in facts.class_pixels.items()
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= _SMALLEST_SHARE else f"< {100 * _SMALLEST_SHARE:g} %"


def _print_finding(console: Console, finding: "Finding", folders: Sequence[Path]) -> None:
    location = "" if finding.role == "data" else f" in {finding.role}"
    head = safe_text(f"\n{finding.severity:<{_INDENT - 1}} ", style=_COLORS[finding.severity])
    head.append(finding.code, style="bold")
    head.append(f"{location}: {finding.count:,}", style="not bold default")
    console.print(head)
    _print_indented(console, finding.problem)
    if finding.amounts:
        _print_indented(console, _amounts_text(finding), extra_indent=2)
    limit = _MAX_INFO_EXAMPLES if finding.severity == "info" else len(finding.examples)
    for example in finding.examples[:limit]:
        path = "" if example.path is None else _relative_path(example.path, folders)
        parts = [part for part in (path, example.note) if part]
        line = ": ".join(parts).replace("\n", "\\n")  # a file name may contain a newline
        _print_indented(console, line, extra_indent=2, style="dim")
    if finding.count > limit and finding.examples:
        _print_indented(console, f"and {finding.count - limit:,} more", extra_indent=2, style="dim")
    _print_indented(console, f"-> {finding.fix}", hanging_indent=3)


def _print_indented(
    console: Console, text: str, *, extra_indent: int = 0, hanging_indent: int = 2, style: str = ""
) -> None:
    """Print a text below a finding; wrapped lines get a larger indent."""
    indent = _INDENT + extra_indent
    lines = safe_text(text).wrap(console, max(20, console.width - indent - hanging_indent))
    for number, line in enumerate(lines):
        space = " " * (indent + (hanging_indent if number else 0))
        console.print(safe_text(f"{space}{line.plain.rstrip()}", style=style), soft_wrap=True)


def _relative_path(path: Path, folders: Sequence[Path]) -> str:
    """Return a path relative to the folder of its set; unchanged if it lies elsewhere."""
    folder = next((top for top in folders if top in path.parents), None)
    return str(path if folder is None else path.relative_to(folder))


def _amounts_text(finding: "Finding") -> str:
    listed = finding.amounts.most_common()
    names = [f"{name} ({count:,} px)" if count else name for name, count in listed]
    more = f" and {len(names) - _MAX_AMOUNTS} more" if len(names) > _MAX_AMOUNTS else ""
    prefix = "" if finding.code != "unknown-id" else "id " if len(names) == 1 else "ids "
    return prefix + ", ".join(names[:_MAX_AMOUNTS]) + more
