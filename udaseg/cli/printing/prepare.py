"""Prints what `udaseg.prepare` and `udaseg.verify_data` return."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from udaseg.display.console import print_json, print_line, safe_text, show_table
from udaseg.sizes import recipe_size
from udaseg.text import bands_text, bits_text, count_text, format_size

if TYPE_CHECKING:
    from udaseg import DataVerification, PrepareReport

_MAX_LINES = 5
_MAX_CLASSES_UNREMARKABLE = 2  # with this many classes, labels with a single class are normal
_MAX_CHANGES = 10


def print_reports(reports: Sequence["PrepareReport"], output_format: str) -> None:
    """Print what prepared data sets contain, as tables or as JSON, and what to do next."""
    if output_format == "json":
        print_json(list(map(_json_of_report, reports)))
        return
    for report in reports:
        print_prepared(report)
    if next_command := _next_command(reports):
        print_line(f"next: {next_command}")


def _json_of_report(report: "PrepareReport") -> dict[str, Any]:
    lists = ("bad", "excluded", "known", "blank", "missing", "reduced", "turned", "unlabelled")
    return {
        "name": report.name,
        "folder": str(report.folder),
        "images": report.counts,
        "classes": list(report.classes),
        "class_shares": report.class_shares,
        **{name: list(getattr(report, name)) for name in lists},
        "read": report.read,
        "unchanged": report.unchanged,
        "check_only": report.check_only,
        "seconds": round(report.seconds, 1),
    }


def _next_command(reports: Sequence["PrepareReport"]) -> str:
    """Return how to train on what was prepared; "" if files were only checked."""
    if not reports or any(report.check_only for report in reports):
        return ""
    # as a source if it has training labels
    targets = [each for each in reports if not each.classes or "train" in each.unlabelled]
    sources = [each for each in reports if each not in targets]
    first, last = reports[0], reports[-1]
    if len(reports) > 1 and first in sources:  # the second is the target, whether labelled or not
        return f"udaseg adapt --source {first.name} --target {last.name}"
    source = sources[0].name if sources else "DATA"
    return f"udaseg adapt --source {source} --target {targets[0].name if targets else 'DATA'}"


def print_prepared(report: "PrepareReport") -> None:
    """Print a table of what a prepared data set contains."""
    state = "unchanged" if report.unchanged else "checked" if report.check_only else "prepared"
    title = f"{report.name}: {state} in {report.seconds:.1f} s"
    if state == "prepared" and report.read < sum(report.counts.values()):
        title += f", {_format_image_count(report.read)} read, the others unchanged"
    table = Table(title=safe_text(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for title, text in _rows(report):
        table.add_row(safe_text(title), safe_text(text))
    show_table(table)


def _rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    for split in report.counts:
        yield split, _split_row(report, split)
    yield from _class_rows(report)
    yield from _label_rows(report)
    for split in report.missing:
        yield split, "no images found"
    yield from _listed_rows(report)
    if report.dataset.bits:
        yield "16-bit images", bits_text(report.dataset.bits)
    if report.dataset.bands:
        yield "TIFFs", f"read with {bands_text(report.dataset.bands)}"
    yield "images in", str(report.dataset.image_root)
    if not report.check_only:
        yield "index in", str(report.folder)
    if report.cache is not None:
        yield "cache", _cache_row(report)


def _split_row(report: "PrepareReport", split: str) -> str:
    samples = report.dataset.splits[split]
    labels = "no labels" if split in report.unlabelled else "labelled"
    expected = report.expected.get(split)
    note = "" if expected in (None, len(samples)) else f"; the published set has {expected:,}"
    sizes = Counter((sample.width, sample.height) for sample in samples)
    shown = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in sizes.most_common(2))
    shown += f" and {len(sizes) - 2} more sizes" if len(sizes) > 2 else ""
    return f"{_format_image_count(len(samples))}, {labels}, {shown}{note}"


def _format_image_count(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"


def _class_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the pixel shares of all classes over the labelled splits, and unused classes."""
    shares = sorted(report.class_shares.items(), key=lambda share: -share[1])
    used = [f"{name} {100 * share:.2f} %" for name, share in shares if share > 0]
    if shares or report.classes:
        yield "classes", ", ".join(used if shares else report.classes)
    if len(used) < len(shares):
        yield "never seen", ", ".join(name for name, share in shares if share == 0)


def _label_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the number of labels with no class, and of those with a single one."""
    labels_by_class_count = Counter(
        sum(map(bool, sample.class_pixels)) for sample in report.samples if sample.label is not None
    )
    few_classes = len(report.classes) <= _MAX_CLASSES_UNREMARKABLE
    for classes, title, content in ((0, "empty", "no class"), (1, "one class", "a single class")):
        number = labels_by_class_count[classes]
        if number and not (classes == 1 and few_classes):
            yield title, f"{number:,} label{'s hold' if number > 1 else ' holds'} {content}; kept"


def _listed_rows(report: "PrepareReport") -> Iterator[tuple[str, str]]:
    """Yield the skipped files, and the unusual files that were kept; the first few of each."""
    for title, lines in (
        ("skipped by rule", report.excluded),
        ("skipped, bad", report.bad),
        ("matches rule, kept", report.known),
        ("one colour, kept", report.blank),
        ("read in part", report.reduced),
        ("turned upright", report.turned),
    ):
        if lines:
            shown = "\n".join(line.replace("\n", "\\n") for line in lines[:_MAX_LINES])
            remainder = f"\nand {len(lines) - _MAX_LINES:,} more" if len(lines) > _MAX_LINES else ""
            yield title, f"{len(lines):,}:\n{shown}{remainder}"


def _cache_row(report: "PrepareReport") -> str:
    assert report.cache is not None
    written, cache, size_mb = report.cache, report.cache.cache, report.cache.size_bytes / 1e6
    size = format_size(cache.size)
    row = (
        f"{count_text(written.images, 'image')} of {size} with their labels as {cache.format}, "
        f"{size_mb:,.1f} MB ({size_mb / max(1, written.images):.2f} MB per image)"
    )
    if written.written:
        row += f", {written.written} written in {written.seconds:.1f} s"
    else:
        row += ", unchanged"
    if written.speedup is not None:
        row += f", read {written.speedup:.1f} times as fast as the original files"
    return f"{row}; used by training with resize {recipe_size(cache.size)}"


def json_of_verification(result: "DataVerification") -> dict[str, Any]:
    """Return what changed in a data set as a JSON object."""
    changes = {"changed": list(result.changed), "missing": list(map(str, result.missing))}
    return {"name": result.name, "files": result.files, "ok": result.ok, **changes}


def print_unchanged(result: "DataVerification") -> None:
    """Print that all files of a data set are unchanged."""
    print_line(f"{result.name}: all {result.files:,} files unchanged ({result.seconds:.1f} s)")
    if result.missing_package is not None:
        print_line(f"  new labels need package {result.missing_package}, which is not installed")


def format_changes(result: "DataVerification") -> str:
    """Return the message about changed and missing files of a data set."""
    changed, missing = result.changed, result.missing
    listed = [*changed[:_MAX_CHANGES], *(f"{path}: is missing" for path in missing[:_MAX_CHANGES])]
    lines = [
        f"{result.name}: {len(changed)} of {result.files:,} files changed and "
        f"{len(missing)} are missing:",
        *("  " + line.replace("\n", "\\n") for line in listed),
    ]
    if len(listed) < len(changed) + len(missing):
        lines.append(f"  and {len(changed) + len(missing) - len(listed)} more")
    # a file can change while its size and time stay, and prepare compares only these
    lines.append(
        f"  restore them; or, to accept all changes, delete {result.folder} and run "
        f"`udaseg prepare {result.argument}`"
    )
    if result.missing_package is not None:
        lines.append(f"  this needs package {result.missing_package}, which is not installed")
    return "\n".join(lines)
