"""`udaseg prepare`: check and index datasets, and print a summary of each."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.loading.cache import CacheFormat
from udaseg.data.loading.cache_speed import measure_cache_speedup
from udaseg.data.loading.cache_write import CacheReport, write_cache
from udaseg.data.prepare.prepare import prepare_dataset
from udaseg.data.prepare.report import PrepareReport
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.data.prepare.verify import VerifyReport, verify_dataset
from udaseg.data.toyland.make import make_toyland
from udaseg.display.console import open_console, safe_text
from udaseg.display.progress import LazyProgress
from udaseg.errors import DataError

log = logging.getLogger(__name__)
_MAX_LINES = 5
_MAX_CLASSES_UNREMARKABLE = 2  # with this many classes, labels with a single class are normal
_MAX_CHANGES = 10


@dataclass(frozen=True)
class CacheOptions:
    """The cache of training images that `prepare` writes.

    Attributes:
        size: (height, width) of the cached images, like the recipe's `resize`.
        format: `png`, or `raw`: faster to read, needs zstd.
    """

    size: tuple[int, int]
    format: CacheFormat = "png"


def prepare(
    *,
    names: list[str],
    root: Path,
    options: PrepareOptions | None = None,
    check_only: bool = False,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    workers: int = -1,
    cache: CacheOptions | None = None,
) -> None:
    """Prepare each dataset and print its contents; a missing one does not stop the others.

    Args:
        names: Built-in names or dataset YAMLs.
        root: Folder of raw data and of prepared datasets.
        options: Which files may be left out; None for the defaults.
        check_only: Check all files without writing.
        seed: Seed of toyland.
        size: (height, width) of toyland's images.
        workers: Decoder threads; -1 chooses.
        cache: Also cache the training images; None for no cache.

    Raises:
        DataError: Datasets are missing or damaged; all of them are named.
    """
    faults, reports = [], []
    toyland_done = check_only
    for name in expand_toyland(names):
        try:
            if name in ("toyland", "toyland-target") and not toyland_done:
                _render_toyland(root, seed, size)
                toyland_done = True
            reports.append(_prepare_one(name, root, options, check_only, workers))
        except DataError as error:
            faults.append(str(error))
    console = open_console()
    for report in reports:
        cache_row = None if cache is None else _build_cache(report.dataset, cache, workers, faults)
        _print_report(console, report, check_only, cache_row)
    if faults:
        raise DataError("\n\n".join(dict.fromkeys(faults)))


def expand_toyland(names: Sequence[str]) -> list[str]:
    """Return each name once, with toyland expanded to its two datasets."""
    halves = {"toyland": ["toyland", "toyland-target"]}
    return list(dict.fromkeys(half for name in names for half in halves.get(name, [name])))


def _render_toyland(root: Path, seed: int, size: tuple[int, int] | None) -> None:
    log.info("rendering toyland in %s", root / "toyland")
    with LazyProgress("render toyland") as progress:
        make_toyland(root, seed=seed, size=size, on_progress=progress)


def _prepare_one(
    name: str, root: Path, options: PrepareOptions | None, check_only: bool, workers: int
) -> PrepareReport:
    stem = Path(name).stem
    with (
        LazyProgress(f"unpack {stem}", "MB") as on_unpack,
        LazyProgress(f"prepare {stem}") as on_progress,
    ):
        return prepare_dataset(
            name,
            root=root,
            options=options,
            check_only=check_only,
            workers=workers,
            on_progress=on_progress,
            on_unpack=on_unpack,
        )


def _build_cache(
    dataset: PreparedDataset, options: CacheOptions, workers: int, faults: list[str]
) -> str | None:
    """Write and measure the cache, add faults to `faults`, and return the row of the table."""
    report = speedup = None
    try:
        report = _write_cache(dataset, options, workers)
        speedup = measure_cache_speedup(dataset, report.cache)
    except DataError as error:
        faults.append(str(error))
    return None if report is None else _cache_row(report, speedup)


def _write_cache(dataset: PreparedDataset, options: CacheOptions, workers: int) -> CacheReport:
    height, width = options.size
    samples = _all_samples(dataset)
    distorted = [s for s in samples if not 0.9 < s.width / s.height * height / width < 1.1]
    if distorted:
        first = distorted[0]
        log.warning(
            "--cache %dx%d (width x height) changes the aspect ratio of %d of %d images, such as "
            "one of %dx%d",
            width,
            height,
            len(distorted),
            len(samples),
            first.width,
            first.height,
        )
    with LazyProgress(f"cache {dataset.name}") as on_progress:
        return write_cache(
            dataset, options.size, options.format, workers=workers, on_progress=on_progress
        )


def _print_report(
    console: Console, report: PrepareReport, check_only: bool, cache_row: str | None
) -> None:
    dataset = report.dataset
    state = "unchanged" if report.unchanged else "checked" if check_only else "prepared"
    title = f"{dataset.name}: {state} in {report.seconds:.1f} s"
    if state == "prepared" and report.read < len(_all_samples(dataset)):
        title += f", {_format_image_count(report.read)} read, the others unchanged"
    table = Table(title=safe_text(title), show_header=False)
    table.title_justify = "left"
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for split in dataset.splits:
        table.add_row(split, safe_text(_split_row(report, split)))
    if dataset.classes is not None:
        for title, text in _class_rows(dataset):
            table.add_row(title, safe_text(text))
    labels_by_class_count = Counter(
        sum(map(bool, s.class_pixels)) for s in _all_samples(dataset) if s.label is not None
    )
    if labels_by_class_count[0]:
        table.add_row(
            "empty", safe_text(f"{_format_label_count(labels_by_class_count[0])} no class; kept")
        )
    if (
        labels_by_class_count[1]
        and dataset.classes is not None
        and len(dataset.classes) > _MAX_CLASSES_UNREMARKABLE
    ):
        table.add_row(
            "one class",
            safe_text(f"{_format_label_count(labels_by_class_count[1])} a single class; kept"),
        )
    for split in report.missing:
        table.add_row(split, safe_text("no images found"))
    for title, text in _listed_rows(report):
        table.add_row(title, safe_text(text))
    table.add_row("images in", safe_text(str(dataset.image_root)))
    if not check_only:
        table.add_row("index in", safe_text(str(dataset.folder)))
    if cache_row is not None:
        table.add_row("cache", safe_text(cache_row))
    if not check_only:
        table.add_row("next", safe_text(_next_command(report)))
    console.print(table)


def _split_row(report: PrepareReport, split: str) -> str:
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


def _listed_rows(report: PrepareReport) -> Iterator[tuple[str, str]]:
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


def _format_label_count(number: int) -> str:
    return f"{number:,} label{'s hold' if number > 1 else ' holds'}"


def _all_samples(dataset: PreparedDataset) -> list[Sample]:
    return [sample for samples in dataset.splits.values() for sample in samples]


def _cache_row(report: CacheReport, speedup: float | None) -> str:
    height, width = report.cache.size
    mb_per_image = report.size_bytes / max(1, report.images) / 1e6
    row = (
        f"{report.images} images of {width}x{height} with their labels as {report.cache.format}, "
        f"{report.size_bytes / 1e6:,.1f} MB ({mb_per_image:.2f} MB per image)"
    )
    row += (
        f", {report.written} written in {report.seconds:.1f} s" if report.written else ", unchanged"
    )
    if speedup is not None:
        row += f", read {speedup:.1f} times as fast as the original files"
    if report.cache.uncached:
        row += f"; {len(report.cache.uncached)} with an EXIF rotation are read from the originals"
    return f"{row}; used by training with resize [{height}, {width}]"


def _next_command(report: PrepareReport) -> str:
    """Return the command that uses the dataset: as source if it has training labels."""
    name = report.dataset.name
    if report.dataset.classes is None or "train" in report.unlabelled:
        return f"udaseg adapt --source DATA --target {name}"
    return f"udaseg adapt --source {name} --target DATA"


def _class_rows(dataset: PreparedDataset) -> list[tuple[str, str]]:
    """Return the pixel shares of all classes over the labelled splits, and unused classes."""
    assert dataset.classes is not None
    names = dataset.classes.names
    counts = [sample.class_pixels for sample in _all_samples(dataset) if sample.class_pixels]
    if not counts:
        return [("classes", ", ".join(names))]
    table = np.asarray(counts, np.int64)
    shares = 100 * table.sum(0) / max(1, int(table.sum()))
    order = np.argsort(-shares)
    rows = [("classes", ", ".join(f"{names[i]} {shares[i]:.2f} %" for i in order if shares[i] > 0))]
    unused = [names[i] for i in order if shares[i] == 0]
    if unused:
        rows.append(("never seen", ", ".join(unused)))
    return rows


def verify(*, names: list[str], root: Path, workers: int) -> None:
    """Compare prepared datasets with their manifests, and list changed and missing files.

    Args:
        names: Names of prepared or built-in datasets, or dataset YAMLs.
        root: Folder of raw data and of prepared datasets.
        workers: Reader threads; -1 chooses.

    Raises:
        DataError: A file has changed, or a dataset is not prepared; all of them are listed.
    """
    faults = []
    console = open_console(soft_wrap=True)
    for name in expand_toyland(names):
        try:
            with LazyProgress(f"verify {Path(name).stem}", "files") as on_progress:
                report = verify_dataset(name, root=root, workers=workers, on_progress=on_progress)
        except DataError as error:
            faults.append(str(error))
            continue
        if report.changed or report.missing:
            faults.append(_format_changes(report, name))
        else:
            duration = f"({report.seconds:.1f} s)"
            console.print(
                safe_text(f"{report.name}: all {report.files:,} files unchanged {duration}")
            )
    if faults:
        raise DataError("\n\n".join(faults))


def _format_changes(report: VerifyReport, name: str) -> str:
    lines = [
        f"{report.name}: {len(report.changed)} of {report.files:,} files changed and "
        f"{len(report.missing)} are missing:",
        *("  " + line.replace("\n", "\\n") for line in report.changed[:_MAX_CHANGES]),
        *(
            "  " + path.replace("\n", "\\n") + ": is missing"
            for path in report.missing[:_MAX_CHANGES]
        ),
    ]
    remaining = sum(max(0, len(paths) - _MAX_CHANGES) for paths in (report.changed, report.missing))
    lines += [f"  and {remaining} more"] if remaining else []
    # a file can change while its size and time stay, and prepare compares only these
    lines.append(
        f"  restore them; or, to accept all changes, delete {report.folder} and run "
        f"`udaseg prepare {name}`"
    )
    return "\n".join(lines)
