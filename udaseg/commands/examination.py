"""`udaseg doctor`: check a data set or a pair, and print problems with their fixes."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg.data import Examination, Finding, SetFacts, examine
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)

_COLORS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_INDENT = 9
_FEW = 2  # examples per finding of severity info
_AMOUNTS = 10
_SIZES = 3
_LEAST = 1e-4
_KINDS = {"declared": "own files", "prepared": "prepared", "folder": "folder of images"}


def doctor(
    *,
    data: str,
    target: str | None,
    root: Path,
    splits: Sequence[str],
    as_json: bool,
    workers: int,
) -> None:
    """Check a data set, or a source and a target, and print the findings; no file is changed.

    Args:
        data: A prepared or built-in name, a dataset YAML, or a folder of images.
        target: Likewise; `data` is then the source.
        root: Folder of the prepared data.
        splits: Splits to check; all if empty.
        as_json: Write one JSON document instead of tables.
        workers: Decoding threads; -1 chooses a number.

    Raises:
        DataError: The check found errors, or there is no such data.
    """
    with ExitStack() as stack:
        progress_bars: list[WorkProgress] = []

        def on_progress(done: int, total: int) -> None:
            if not progress_bars:  # the total is known with the first call
                progress_bars.append(stack.enter_context(WorkProgress("doctor", total)))
            progress_bars[0].update(done)

        examination = examine(
            data,
            target=target,
            root=root,
            splits=splits,
            workers=workers,
            on_progress=on_progress,
        )
    if as_json:
        document = json.dumps(examination.document(), indent=2, allow_nan=False)
        Console(highlight=False, soft_wrap=True).print(Text(document))
    else:
        _show(Console(highlight=False), examination)
    errors = examination.of("error")
    if errors:
        codes = ", ".join(dict.fromkeys(error.code for error in errors))
        names = " and ".join(printable(facts.name) for facts in examination.sets)
        raise DataError(f"{names}: {_counted(len(errors), 'kind')} of error: {codes}")


def _show(console: Console, examination: Examination) -> None:
    console.print(_facts(examination.sets))
    classes = _classes(examination.sets)
    if classes is not None:
        console.print(classes)
    folders = {facts.role: facts.folder for facts in examination.sets}
    for finding in examination.findings:
        _show_finding(console, finding, folders)
    counts = [
        len(examination.of("error")),
        len(examination.of("warning")),
        len(examination.of("info")),
    ]
    labels = ("error", "warning", "note")
    summary = ", ".join(_counted(count, label) for count, label in zip(counts, labels, strict=True))
    images = sum(split.images for facts in examination.sets for split in facts.splits.values())
    console.print(Text(f"\n{summary}; checked {images:,} images in {examination.seconds:.1f} s"))


def _facts(sets: Sequence[SetFacts]) -> Table:
    """Return a table of the properties of each set, one column per set."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    for _ in sets:
        table.add_column(overflow="fold")
    if len(sets) > 1:
        table.add_row("", *(Text(facts.role, style="bold") for facts in sets))
    rows = {
        "data": [f"{printable(facts.name)} ({_KINDS[facts.kind]})" for facts in sets],
        "images": ["\n".join(_split_lines(facts)) for facts in sets],
        "sizes": [_sizes(facts) for facts in sets],
        "colour": [_color(facts) for facts in sets],
        "in": [printable(str(facts.folder)) for facts in sets],
    }
    for title, texts in rows.items():
        table.add_row(title, *map(Text, texts))
    return table


def _split_lines(facts: SetFacts) -> list[str]:
    lines = []
    for name, split in facts.splits.items():
        labels = "labelled" if split.labelled == split.images else f"{split.labelled} labelled"
        lines.append(f"{name} {split.images:,}, {labels if split.labelled else 'no labels'}")
    return lines


def _sizes(facts: SetFacts) -> str:
    parts = [split.sizes for split in facts.splits.values()]
    sizes = sum(parts[1:], parts[0].copy()) if parts else None
    if not sizes:
        return "no readable image"
    listed = ", ".join(
        f"{width}x{height} ({count:,})" for (width, height), count in sizes.most_common(_SIZES)
    )
    return listed + (f" and {len(sizes) - _SIZES} more" if len(sizes) > _SIZES else "")


def _color(facts: SetFacts) -> str:
    if facts.mean is None or facts.spread is None:
        return "-"
    mean, spread = (
        " ".join(f"{channel:.0f}" for channel in color) for color in (facts.mean, facts.spread)
    )
    return f"mean RGB {mean}\nspread   {spread}"


def _classes(sets: Sequence[SetFacts]) -> Table | None:
    """Return a table of each class's share of the labels, per set; None if no set has labels.

    For a source, only its training splits count; for other sets, all labels.
    """
    shares = {facts.role: _shares(facts) for facts in sets}
    shares = {role: share_by_class for role, share_by_class in shares.items() if share_by_class}
    if not shares:
        return None
    table = Table()
    table.add_column("class")
    for role in shares:
        table.add_column("share" if role == "data" else role, justify="right")
    for name in dict.fromkeys(
        name for share_by_class in shares.values() for name in share_by_class
    ):
        cells = [share_by_class.get(name, "no such class") for share_by_class in shares.values()]
        table.add_row(Text(printable(name)), *cells)
    return table


def _shares(facts: SetFacts) -> dict[str, str]:
    subsets = (True,) if facts.role == "source" else (True, False)
    counts = [
        labelled[0]
        for trained in subsets
        if (labelled := facts.counts(trained=trained)) is not None
    ]
    if not counts:
        return {}
    pixels = [sum(int(count[index]) for count in counts) for index in range(len(facts.classes))]
    total = max(1, sum(pixels))
    texts = [_percent(count / total) if count else "never" for count in pixels]
    return dict(zip(facts.classes, texts, strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= _LEAST else f"< {100 * _LEAST:g} %"


def _show_finding(console: Console, finding: Finding, folders: dict[str, Path]) -> None:
    location = "" if finding.where == "data" else f" in {finding.where}"
    head = Text(f"\n{finding.severity:<{_INDENT - 1}} ", style=_COLORS[finding.severity])
    head.append(finding.code, style="bold")
    head.append(f"{location}: {finding.count:,}", style="not bold default")
    console.print(head)
    _say(console, finding.what)
    if finding.amounts:
        _say(console, _amounts(finding), deeper=2)
    limit = _FEW if finding.severity == "info" else len(finding.examples)
    for example in finding.examples[:limit]:
        path = "" if example.path is None else _shown(example.path, list(folders.values()))
        parts = [part for part in (path, example.note) if part]
        line = ": ".join(parts).replace("\n", "\\n")  # a file name may contain a newline
        _say(console, printable(line), deeper=2, style="dim")
    if finding.count > limit and finding.examples:
        _say(console, f"and {finding.count - limit:,} more", deeper=2, style="dim")
    _say(console, f"-> {finding.fix}", hanging=3)


def _say(
    console: Console, text: str, *, deeper: int = 0, hanging: int = 2, style: str = ""
) -> None:
    """Print a text below a finding; wrapped lines get a larger indent."""
    indent = _INDENT + deeper
    lines = Text(text).wrap(console, max(20, console.width - indent - hanging))
    for number, line in enumerate(lines):
        space = " " * (indent + (hanging if number else 0))
        console.print(Text(f"{space}{line.plain.rstrip()}", style=style), soft_wrap=True)


def _shown(path: Path, folders: Sequence[Path]) -> str:
    """Return a path relative to the folder of its set; unchanged if it lies elsewhere."""
    for folder in folders:
        if path != folder and path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


def _amounts(finding: Finding) -> str:
    listed = finding.amounts.most_common()
    names = [f"{name} ({count:,} px)" if count else name for name, count in listed]
    more = f" and {len(names) - _AMOUNTS} more" if len(names) > _AMOUNTS else ""
    prefix = "" if finding.code != "unknown-id" else "id " if len(names) == 1 else "ids "
    return prefix + printable(", ".join(names[:_AMOUNTS])) + more


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count or 'no'} {word}s"
