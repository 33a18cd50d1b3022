"""`udaseg prepare`: check and index datasets, and print a summary of each."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg.data import (
    CacheReport,
    PreparedDataset,
    PrepareReport,
    Sample,
    make_toyland,
    prepare_dataset,
    speed_up,
    write_cache,
)
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)

_SHOWN = 5
_FEW = 2  # with this many classes, labels with a single class are normal


def prepare(
    *,
    names: list[str],
    root: Path,
    check_only: bool,
    max_bad: int,
    on_mismatch: str,
    exclude: Sequence[str] = (),
    seed: int,
    size: tuple[int, int] | None,
    workers: int,
    cache: tuple[int, int] | None = None,
    cache_format: str = "png",
) -> None:
    """Prepare each dataset and print its contents; a missing one does not stop the others.

    Args:
        names: Built-in names or dataset YAMLs.
        root: Folder of raw data and of prepared datasets.
        check_only: Check all files without writing.
        max_bad: Maximum number of damaged or unpaired files that may be skipped.
        on_mismatch: exclude, resize or fail, if a label and its image differ in size.
        exclude: Named rules of the datasets; matching files are skipped.
        seed: Seed of toyland.
        size: (height, width) of toyland's images.
        workers: Decoder threads; -1 chooses.
        cache: (height, width) of the cached training images, like the recipe's `resize`.
        cache_format: png or raw.

    Raises:
        DataError: Datasets are missing or damaged; all of them are named.
    """
    faults, reports = [], []
    toyland_done = check_only
    for name in every_half(names):
        try:
            if name in ("toyland", "toyland-target") and not toyland_done:
                log.info("rendering toyland in %s", root / "toyland")
                with Counted("render toyland") as progress:
                    make_toyland(root, seed=seed, size=size, on_progress=progress)
                toyland_done = True
            rules = {"max_bad": max_bad, "on_mismatch": on_mismatch, "exclude": exclude}
            reports.append(_prepared(name, root, check_only, rules, workers))
        except DataError as error:
            faults.append(str(error))
    console = Console(highlight=False, soft_wrap=False)
    for report in reports:
        cache_report = speedup = None
        if cache is not None:
            try:
                cache_report = _cached(report.dataset, cache, cache_format, workers)
                speedup = speed_up(report.dataset, cache_report.cache)
            except DataError as error:
                faults.append(str(error))
        _show(
            console,
            report,
            check_only,
            None if cache_report is None else _cache_row(cache_report, speedup),
        )
    if faults:
        raise DataError("\n\n".join(dict.fromkeys(faults)))


def every_half(names: Sequence[str]) -> list[str]:
    """Return each name once, with toyland expanded to its two datasets."""
    halves = {"toyland": ["toyland", "toyland-target"]}
    return list(dict.fromkeys(half for name in names for half in halves.get(name, [name])))


def _prepared(
    name: str, root: Path, check_only: bool, rules: dict[str, Any], workers: int
) -> PrepareReport:
    stem = printable(Path(name).stem)
    with (
        Counted(f"unpack {stem}", "MB") as on_unpack,
        Counted(f"prepare {stem}") as on_progress,
    ):
        return prepare_dataset(
            name,
            root=root,
            check_only=check_only,
            workers=workers,
            on_progress=on_progress,
            on_unpack=on_unpack,
            **rules,
        )


def _cached(
    dataset: PreparedDataset, size: tuple[int, int], cache_format: str, workers: int
) -> CacheReport:
    height, width = size
    samples = _all(dataset)
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
    with Counted(f"cache {printable(dataset.name)}") as on_progress:
        return write_cache(
            dataset,
            size,
            cache_format,  # type: ignore[arg-type]  # the command line checked the value
            workers=workers,
            on_progress=on_progress,
        )


class Counted:
    """A progress bar that appears with the first call, when the total is known."""

    def __init__(self, what: str, unit: str = "images") -> None:
        self._what, self._unit = what, unit
        self._stack = ExitStack()
        self._progress: WorkProgress | None = None
        self._over = False

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the last call closes the bar."""
        if self._over or total == 0:
            return
        if self._progress is None:
            self._progress = self._stack.enter_context(
                WorkProgress(self._what, total, unit=self._unit)
            )
        self._progress.update(done)
        if done == total:
            self._over = True
            self._stack.close()


def _show(console: Console, report: PrepareReport, check_only: bool, cache_row: str | None) -> None:
    dataset = report.dataset
    state = "unchanged" if report.unchanged else "checked" if check_only else "prepared"
    title = f"{dataset.name}: {state} in {report.seconds:.1f} s"
    if state == "prepared" and report.read < len(_all(dataset)):
        title += f", {_images(report.read)} read, the others unchanged"
    table = Table(title=Text(title), show_header=False)
    table.title_justify = "left"
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for split in dataset.splits:
        table.add_row(split, Text(_split_row(report, split)))
    if dataset.classes is not None:
        for title, text in _class_rows(dataset):
            table.add_row(title, Text(text))
    labels_by_class_count = Counter(
        sum(map(bool, s.pixels)) for s in _all(dataset) if s.label is not None
    )
    if labels_by_class_count[0]:
        table.add_row("empty", Text(f"{_labels(labels_by_class_count[0])} no class; kept"))
    if labels_by_class_count[1] and dataset.classes is not None and len(dataset.classes) > _FEW:
        table.add_row(
            "one class", Text(f"{_labels(labels_by_class_count[1])} a single class; kept")
        )
    for split in report.missing:
        table.add_row(split, Text("no images found"))
    for title, text in _listed_rows(report):
        table.add_row(title, Text(text))
    table.add_row("images in", Text(printable(str(dataset.image_root))))
    if not check_only:
        table.add_row("index in", Text(printable(str(dataset.folder))))
    if cache_row is not None:
        table.add_row("cache", Text(cache_row))
    if not check_only:
        table.add_row("next", Text(_next(report)))
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
    return f"{_images(len(samples))}, {labels}, {shown}{note}"


def _images(number: int) -> str:
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
            shown = "\n".join(printable(line.replace("\n", "\\n")) for line in lines[:_SHOWN])
            remainder = f"\nand {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
            yield title, f"{len(lines):,}:\n{shown}{remainder}"


def _labels(number: int) -> str:
    return f"{number:,} label{'s hold' if number > 1 else ' holds'}"


def _all(dataset: PreparedDataset) -> list[Sample]:
    return [sample for samples in dataset.splits.values() for sample in samples]


def _cache_row(report: CacheReport, speedup: float | None) -> str:
    height, width = report.cache.size
    mb_per_image = report.size_bytes / max(1, report.images) / 1e6
    row = (
        f"{report.images} images of {width}x{height} with their labels as {report.cache.form}, "
        f"{report.size_bytes / 1e6:,.1f} MB ({mb_per_image:.2f} MB per image)"
    )
    row += f", {report.made} written in {report.seconds:.1f} s" if report.made else ", unchanged"
    if speedup is not None:
        row += f", read {speedup:.1f} times as fast as the original files"
    if report.cache.left_out:
        row += f"; {len(report.cache.left_out)} with an EXIF rotation are read from the originals"
    return f"{row}; used by training with resize [{height}, {width}]"


def _next(report: PrepareReport) -> str:
    """Return the command that uses the dataset: as source if it has training labels."""
    name = report.dataset.name
    if report.dataset.classes is None or "train" in report.unlabelled:
        return f"udaseg adapt --source DATA --target {name}"
    return f"udaseg adapt --source {name} --target DATA"


def _class_rows(dataset: PreparedDataset) -> list[tuple[str, str]]:
    """Return the pixel shares of all classes over the labelled splits, and unused classes."""
    assert dataset.classes is not None
    names = dataset.classes.names
    counts = [sample.pixels for sample in _all(dataset) if sample.pixels]
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
