"""`udaseg prepare`: check datasets, index them, and say in one screen what was found."""

import logging
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from udaseg.data import PreparedDataset, PrepareReport, Sample, make_toyland, prepare_dataset
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)

_SHOWN = 5


def prepare(
    *,
    names: list[str],
    root: Path,
    check_only: bool,
    max_bad: int,
    on_mismatch: str,
    seed: int,
    size: tuple[int, int] | None,
    workers: int,
) -> None:
    """Prepare each dataset and show what it holds; one that is missing does not stop the others.

    Args:
        names: Built-in names or dataset YAMLs.
        root: Where data lie and prepared sets go.
        check_only: Look at everything and write nothing.
        max_bad: Damaged or unpaired files that may be left out.
        on_mismatch: exclude, resize or fail, when a label has another size than its image.
        seed: Of toyland.
        size: (height, width) of toyland's images.
        workers: Threads that decode; -1 chooses.

    Raises:
        DataError: Something is missing or damaged; all such sets are named.
    """
    wanted = []
    for name in names:
        if name == "toyland":
            wanted += ["toyland", "toyland-target"]
        else:
            wanted.append(name)
    faults, reports = [], []
    made = check_only
    for name in dict.fromkeys(wanted):
        try:
            if name in ("toyland", "toyland-target") and not made:
                log.info("making toyland in %s", root / "toyland")
                with _Counted("render toyland") as rendered:
                    make_toyland(root, seed=seed, size=size, on_progress=rendered)
                made = True
            reports.append(_prepared(name, root, check_only, max_bad, on_mismatch, workers))
        except DataError as error:
            faults.append(str(error))
    console = Console(highlight=False, soft_wrap=False)
    for report in reports:
        _show(console, report, check_only)
    if faults:
        raise DataError("\n\n".join(dict.fromkeys(faults)))


def _prepared(
    name: str, root: Path, check_only: bool, max_bad: int, on_mismatch: str, workers: int
) -> PrepareReport:
    with _Counted(f"prepare {printable(Path(name).stem)}") as on_progress:
        return prepare_dataset(
            name,
            root=root,
            check_only=check_only,
            max_bad=max_bad,
            on_mismatch=on_mismatch,  # type: ignore[arg-type]  # the command line checked the word
            workers=workers,
            on_progress=on_progress,
        )


class _Counted:
    """A progress display that appears with the first call, when the total is known."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._stack = ExitStack()
        self._progress: WorkProgress | None = None

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = self._stack.enter_context(WorkProgress(self._what, total))
        self._progress.update(done)


def _show(console: Console, report: PrepareReport, check_only: bool) -> None:
    dataset = report.dataset
    state = "unchanged" if report.unchanged else "checked" if check_only else "prepared"
    table = Table(
        title=Text(f"{dataset.name}: {state} in {report.seconds:.1f} s"), show_header=False
    )
    table.title_justify = "left"
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for split, samples in dataset.splits.items():
        labels = "no labels" if split in report.unlabelled else "labelled"
        expected = report.expected.get(split)
        note = "" if expected in (None, len(samples)) else f"; the published set has {expected}"
        sizes = Counter((sample.width, sample.height) for sample in samples).most_common(2)
        shown = ", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes)
        more = len({(s.width, s.height) for s in samples}) - len(sizes)
        shown += f" and {more} more sizes" if more > 0 else ""
        table.add_row(split, Text(f"{len(samples)} images, {labels}, {shown}{note}"))
    if dataset.classes is not None:
        for title, text in _class_rows(dataset):
            table.add_row(title, Text(text))
    void = sum(s.label is not None and not any(s.pixels) for s in _all(dataset))
    if void:
        table.add_row("empty", Text(f"{void} labels hold no class at all; they are kept"))
    for split in report.missing:
        table.add_row(split, Text("no images found"))
    for title, listed in (
        ("left out, size", report.excluded),
        ("left out, bad", report.bad),
        ("one colour, kept", report.blank),
    ):
        if listed:
            shown = "\n".join(printable(line) for line in listed[:_SHOWN])
            rest = f"\nand {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
            table.add_row(title, Text(f"{len(listed)}:\n{shown}{rest}"))
    table.add_row("images in", Text(printable(str(dataset.image_root))))
    if not check_only:
        table.add_row("index in", Text(printable(str(dataset.folder))))
        table.add_row("next", Text(_next(report)))
    console.print(table)


def _all(dataset: PreparedDataset) -> list[Sample]:
    return [sample for samples in dataset.splits.values() for sample in samples]


def _next(report: PrepareReport) -> str:
    """Return the command that uses the set: as a source where training labels are there."""
    name = report.dataset.name
    if report.dataset.classes is None or "train" in report.unlabelled:
        return f"udaseg adapt --source DATA --target {name}"
    return f"udaseg adapt --source {name} --target DATA"


def _class_rows(dataset: PreparedDataset) -> list[tuple[str, str]]:
    """Return the shares of all classes over the labelled splits, and those that never occur."""
    assert dataset.classes is not None
    names = dataset.classes.names
    counts = [sample.pixels for sample in _all(dataset) if sample.pixels]
    if not counts:
        return [("classes", ", ".join(names))]
    table = np.asarray(counts, np.int64)
    shares = 100 * table.sum(0) / max(1, int(table.sum()))
    order = np.argsort(-shares)
    rows = [("classes", ", ".join(f"{names[i]} {shares[i]:.2f} %" for i in order if shares[i] > 0))]
    never = [names[i] for i in order if shares[i] == 0]
    if never:
        rows.append(("never seen", ", ".join(never)))
    return rows
