"""The report on preparing a dataset, the checks that it must pass, and messages about its files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.datasets.pairs import DatasetFiles
from udaseg.data.files.bit_depth import bits_of_values
from udaseg.data.labels.formats import object_format
from udaseg.data.labels.tables import LabelId, color_text
from udaseg.data.loading.cache_write import CacheReport
from udaseg.data.prepare.manifest import Row
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError

_MAX_LISTED = 10


@dataclass
class PrepareReport:
    """The result of preparing a data set.

    Attributes:
        dataset: The prepared data set; with `check_only` it is not on disk.
        bad: Files that cannot be used, with the reason; they are left out.
        excluded: Pairs that a named rule excludes, with the reason.
        known: Pairs that a named rule would exclude; they are kept.
        blank: Images of a single colour; they are kept.
        reduced: Images of which something is not read, such as a fourth band; they are kept.
        missing: Declared splits of a built-in dataset that have no images.
        expected: Published number of images of each split.
        seconds: Wall time.
        read: Pairs read in this run; the others come from an earlier run.
        unchanged: Whether the data set was already prepared and nothing had changed.
        check_only: Whether files were only checked.
        cache: The cache of training images, if one was requested and could be written.
    """

    dataset: PreparedDataset
    bad: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reduced: list[str] = field(default_factory=list)
    expected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    read: int = 0
    unchanged: bool = False
    check_only: bool = False
    cache: CacheReport | None = None

    @property
    def name(self) -> str:
        """Name of the data set, which `train`, `adapt` and `evaluate` accept."""
        return self.dataset.name

    @property
    def folder(self) -> Path:
        """Folder of the index and the labels as train ids."""
        return self.dataset.folder

    @property
    def samples(self) -> Iterator[Sample]:
        """The images of all splits."""
        return (sample for samples in self.dataset.splits.values() for sample in samples)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: len(samples) for split, samples in self.dataset.splits.items()}

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Splits without labels."""
        splits = self.dataset.splits.items()
        return tuple(split for split, samples in splits if samples[0].label is None)

    @property
    def turned(self) -> list[str]:
        """The images that are stored turned, with their EXIF orientation."""
        return [
            f"{sample.image}: EXIF orientation {sample.orientation}"
            for sample in self.samples
            if sample.orientation != 1
        ]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty without labels."""
        return () if self.dataset.classes is None else self.dataset.classes.names

    @property
    def class_shares(self) -> dict[str, float]:
        """Share of the labelled pixels that each class has, in all splits; empty without labels."""
        counts = [sample.class_pixels for sample in self.samples if sample.class_pixels]
        pixels = [sum(column) for column in zip(*counts, strict=True)]
        total = max(1, sum(pixels))
        shares = (count / total for count in pixels)
        return dict(zip(self.classes, shares, strict=True)) if counts else {}


@dataclass
class ReadResult:
    """The result of reading all pairs.

    Attributes:
        rows: The readable pairs, in order.
        bad: Files that cannot be used, with the reason.
        read: Pairs read in this run; the others come from an earlier run.
        either_way: Turned images whose labels are ambiguous.
    """

    rows: list[Row] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    read: int = 0
    either_way: list[str] = field(default_factory=list)


def build_report(
    declaration: Declaration,
    pairs: DatasetFiles,
    result: ReadResult,
    folder: Path,
    final: Path,
    options: PrepareOptions,
) -> PrepareReport:
    """Return the report on the pairs that were read, if enough of them can be used."""
    name, table = declaration.name, declaration.table
    if result.either_way:
        raise DataError(_either_way_message(declaration, result.either_way))
    samples: dict[str, list[Sample]] = {split: [] for split in pairs.splits}
    for row in result.rows:
        if row.sample is not None:
            samples[row.split].append(row.sample)
    excluded = [*map(str, pairs.excluded), *(row.excluded for row in result.rows if row.excluded)]
    check_bad_files(name, result.bad, options.max_bad, nothing_left=not result.rows)
    for split, split_samples in samples.items():
        if not split_samples:
            left_out = format_first([*excluded, *result.bad])
            message = f"{name}: nothing is left of split '{split}':\n{left_out}"
            if any(", image " in line for line in excluded):
                message += "\n  --on-mismatch resize scales labels to the size of their image"
            raise DataError(message)
    blank = [row.image.path for row in result.rows if row.blank]
    dataset = PreparedDataset(
        name,
        final,
        folder.resolve(),
        None if table is None else table.classes,
        {split: tuple(split_samples) for split, split_samples in samples.items()},
        frozenset(blank),
        declaration.bits or bits_of_values(row.peak for row in result.rows if row.peak is not None),
        declaration.bands,
    )
    return PrepareReport(
        dataset,
        result.bad,
        excluded,
        list(map(str, pairs.known)),
        [str(folder / path) for path in blank],
        pairs.splits_without_images,
        reduced=reduced_images(folder, result.rows),
        read=result.read,
        check_only=options.check_only,
    )


def reduced_images(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Return the images below `folder` of which something is not read, with what it is."""
    return [f"{folder / row.image.path}: {row.loss}" for row in rows if row.loss]


def unknown_ids_message(
    declaration: Declaration, unknown: Mapping[LabelId, int], first: Mapping[LabelId, Path]
) -> str:
    """Return the message about ids that the table does not define.

    Args:
        declaration: The declaration of the dataset.
        unknown: Number of pixels of each such id or named label.
        first: The first label file that has it.
    """
    lines, kind = [], "ids" if object_format(declaration.label_format) is None else "objects"
    for number, count in sorted(unknown.items(), key=lambda item: -item[1]):
        shown = format_id(number, declaration.label_format)
        lines.append(f"{shown}: {count} pixels, first in {first[number]}")
    if declaration.argument == declaration.name:
        advice = (
            "these are not the labels of this dataset; is it another version?\n"
            f"  a dataset YAML with `base: {declaration.name}` can list them in 'ignore'"
        )
    else:
        advice = "add them to a class, or list them in 'ignore' of the dataset YAML"
    return (
        f"{declaration.name}: labels contain {kind} that are in no class and not in 'ignore':\n"
        f"{format_first(lines)}\n  {advice}"
    )


def _either_way_message(declaration: Declaration, images: Sequence[str]) -> str:
    """Return the message about turned images whose labels are ambiguous."""
    where = "the dataset YAML"
    if declaration.argument == declaration.name:
        where = f"a dataset YAML with `base: {declaration.name}`"
    return (
        f"{declaration.name}: {len(images)} images are stored turned, and the size of their labels "
        f"does not show their orientation:\n{format_first(images)}\n"
        f"  write `orientation: stored` into {where} if labels match the pixels as stored, or "
        "`orientation: upright` if they match the image as viewers show it"
    )


def format_id(number: LabelId, label_format: str | None) -> str:
    """Return an id as a declaration writes it: a number, a label, or the colour of format `rgb`."""
    if isinstance(number, str) or label_format != "rgb":
        return str(number)
    return color_text(number)


def check_bad_files(
    name: str, bad: Sequence[str], max_bad: int, *, nothing_left: bool = False, hint: str = ""
) -> None:
    """Raise an error if more files are unusable than may be left out.

    Args:
        name: Name of the data set.
        bad: The files, each with the reason.
        max_bad: Maximum number of files to leave out.
        nothing_left: Whether no file would be left without them.
        hint: What to do instead of leaving them out.
    """
    if len(bad) <= max_bad:
        return
    files, pronoun = ("1 file", "it") if len(bad) == 1 else (f"{len(bad)} files", "them")
    advice = hint or f"fix or remove {pronoun}, or leave {pronoun} out with --max-bad {len(bad)}"
    reasons = {line.partition(": ")[2] for line in bad}
    if nothing_left:
        advice = "fix them; no other file would be left"
        if len(reasons) == 1 and len(bad) > 1:
            raise DataError(
                f"{name}: none of the {files} can be used, such as {bad[0]}\n  {advice}"
            )
    raise DataError(f"{name}: {files} cannot be used:\n{format_first(bad)}\n  {advice}")


def format_first(lines: Sequence[str]) -> str:
    """Return the first of many lines, indented, and how many more there are."""
    # a file name may contain a newline, and would look like another line of the list
    shown = ["  " + line.replace("\n", "\\n") for line in lines[:_MAX_LISTED]]
    if len(lines) > _MAX_LISTED:
        shown.append(f"  and {len(lines) - _MAX_LISTED} more")
    return "\n".join(shown)


class SomeDataFailed(DataError):
    """Data sets failed, and the message names them; the work on the others is finished.

    Attributes:
        finished: The results of the other data sets.
    """

    def __init__(self, message: str, finished: Sequence[Any]) -> None:
        super().__init__(message)
        self.finished = list(finished)


class Faults(list[str]):
    """The messages on data sets that failed."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the message of a `DataError` instead of raising it."""
        try:
            yield
        except DataError as error:
            self.append(str(error))

    def raise_if_any(self, finished: Sequence[Any]) -> None:
        """Raise a `SomeDataFailed` that lists all faults, each once, if there are any."""
        if self:
            raise SomeDataFailed("\n\n".join(dict.fromkeys(self)), finished)
