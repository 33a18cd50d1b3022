"""Prints what `udaseg.prepare` and `udaseg.verify_data` return."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from udaseg.display.console import safe_text

if TYPE_CHECKING:
    from udaseg import DataVerification, PrepareReport

_MAX_LINES = 5
_MAX_CLASSES_UNREMARKABLE = 2  # with this many classes, labels with a single class are normal
_MAX_CHANGES = 10


def print_prepared(console: Console, report: "PrepareReport") -> None:
    """Print a table of what a prepared data set contains."""
    state = "unchanged" if report.unchanged else "checked" if report.check_only else "prepared"
    title = f"{report.name}: {state} in {report.seconds:.1f} s"
    if state == "prepared" and report.read < sum(report.counts.values()):
        title += f", {_format_image_count(report.read)} read, the others unchanged"
    table = Table(title=safe_text(title), show_header=False)
    table.title_justify = "left"
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, text in _rows(report):
        table.add_row(safe_text(title), safe_text(text))
    console.print(table)


def _rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    for split in report.counts:
        yield split, _split_row(report, split)
    yield from _class_rows(report)
    yield from _label_rows(report)
    for split in report.missing:
        yield split, "no images found"
    yield from _listed_rows(report)
    yield "images in", str(report.dataset.image_root)
    if not report.check_only:
        yield "index in", str(report.folder)
    if report.cache is not None:
        yield "cache", _cache_row(report)
    if not report.check_only:
        yield "next", _next_command(report)


def _split_row(report: "PrepareReport", split: str) -> str:
    samples = report.dataset.splits[split]
    labels = "no labels" if split in report.unlabelled else "labelled"
    expected = report.expected.get(split)
    note = "" if expected in (None, len(samples)) else f"; the published set has {expected:,}"
    sizes = Counter((sample.width, sample.height) for sample in samples).most_common(2)
    shown = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in sizes)
    more = len({(s.width, s.height) for s in samples}) - len(sizes)
    shown += f" and {more} more sizes" if more > 0 else ""
    return f"{_format_image_count(len(samples))}, {labels}, {shown}{note}"


def _format_image_count(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"


def _class_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the pixel shares of all classes over the labelled splits, and unused classes."""
    shares = sorted(report.class_shares.items(), key=lambda share: -share[1])
    if shares:
        used = [f"{name} {100 * share:.2f} %" for name, share in shares if share > 0]
        yield "classes", ", ".join(used)
    elif report.classes:
        yield "classes", ", ".join(report.classes)
    unused = [name for name, share in shares if share == 0]
    if unused:
        yield "never seen", ", ".join(unused)


def _label_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the number of labels with no class, and of those with a single one."""
    labels_by_class_count = Counter(
        sum(map(bool, sample.class_pixels)) for sample in report.samples if sample.label is not None
    )
    if labels_by_class_count[0]:
        yield "empty", f"{_format_label_count(labels_by_class_count[0])} no class; kept"
    if labels_by_class_count[1] and len(report.classes) > _MAX_CLASSES_UNREMARKABLE:
        yield "one class", f"{_format_label_count(labels_by_class_count[1])} a single class; kept"


def _format_label_count(number: int) -> str:
    return f"{number:,} label{'s hold' if number > 1 else ' holds'}"


def _listed_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the skipped files, and the unusual files that were kept; the first few of each."""
    for title, lines in (
        ("skipped by rule", report.excluded),
        ("skipped, bad", report.bad),
        ("matches rule, kept", report.known),
        ("one colour, kept", report.blank),
    ):
        if lines:
            shown = "\n".join(line.replace("\n", "\\n") for line in lines[:_MAX_LINES])
            remainder = f"\nand {len(lines) - _MAX_LINES:,} more" if len(lines) > _MAX_LINES else ""
            yield title, f"{len(lines):,}:\n{shown}{remainder}"


def _cache_row(report: "PrepareReport") -> str:
    written = report.cache
    assert written is not None
    height, width = written.cache.size
    mb_per_image = written.size_bytes / max(1, written.images) / 1e6
    row = (
        f"{written.images} images of {width}x{height} with their labels as "
        f"{written.cache.format}, {written.size_bytes / 1e6:,.1f} MB "
        f"({mb_per_image:.2f} MB per image)"
    )
    if written.written:
        row += f", {written.written} written in {written.seconds:.1f} s"
    else:
        row += ", unchanged"
    if written.speedup is not None:
        row += f", read {written.speedup:.1f} times as fast as the original files"
    if written.cache.uncached:
        row += f"; {len(written.cache.uncached)} with an EXIF rotation are read from the originals"
    return f"{row}; used by training with resize [{height}, {width}]"


def _next_command(report: "PrepareReport") -> str:
    """Return the command that uses the data set: as source if it has training labels."""
    if not report.classes or "train" in report.unlabelled:
        return f"udaseg adapt --source DATA --target {report.name}"
    return f"udaseg adapt --source {report.name} --target DATA"


def print_unchanged(console: Console, result: "DataVerification") -> None:
    """Print that all files of a data set are unchanged."""
    duration = f"({result.seconds:.1f} s)"
    console.print(safe_text(f"{result.name}: all {result.files:,} files unchanged {duration}"))
    if result.missing_package is not None:
        console.print(
            safe_text(f"  new labels need package {result.missing_package}, which is not installed")
        )


def format_changes(result: "DataVerification") -> str:
    """Return the message about changed and missing files of a data set."""
    lines = [
        f"{result.name}: {len(result.changed)} of {result.files:,} files changed and "
        f"{len(result.missing)} are missing:",
        *("  " + line.replace("\n", "\\n") for line in result.changed[:_MAX_CHANGES]),
        *(
            "  " + path.replace("\n", "\\n") + ": is missing"
            for path in result.missing[:_MAX_CHANGES]
        ),
    ]
    remaining = sum(max(0, len(paths) - _MAX_CHANGES) for paths in (result.changed, result.missing))
    lines += [f"  and {remaining} more"] if remaining else []
    # a file can change while its size and time stay, and prepare compares only these
    lines.append(
        f"  restore them; or, to accept all changes, delete {result.folder} and run "
        f"`udaseg prepare {result.argument}`"
    )
    if result.missing_package is not None:
        lines.append(f"  this needs package {result.missing_package}, which is not installed")
    return "\n".join(lines)
