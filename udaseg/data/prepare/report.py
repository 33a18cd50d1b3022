"""The report on preparing a dataset, and the checks that it must pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.datasets.pairs import DatasetFiles
from udaseg.data.loading.cache_write import CacheReport
from udaseg.data.prepare.convert import ReadResult
from udaseg.data.prepare.refusals import check_bad_files, format_first
from udaseg.data.prepare.rules import PrepareOptions
from udaseg.errors import DataError


@dataclass
class PrepareReport:
    """The result of preparing a data set.

    Attributes:
        dataset: The prepared data set; with `check_only` it is not on disk.
        bad: Files that cannot be used, with the reason; they are left out.
        excluded: Pairs that a named rule excludes, with the reason.
        known: Pairs that a named rule would exclude; they are kept.
        blank: Images of a single colour; they are kept.
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
    samples: dict[str, list[Sample]] = {split: [] for split in pairs.splits}
    for row in result.rows:
        if row.sample is not None:
            samples[row.split].append(row.sample)
    excluded = [*pairs.excluded, *(row.excluded for row in result.rows if row.excluded)]
    check_bad_files(name, result.bad, options.max_bad)
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
    )
    return PrepareReport(
        dataset,
        result.bad,
        excluded,
        pairs.known,
        [str(folder / path) for path in blank],
        pairs.splits_without_images,
        read=result.read,
        check_only=options.check_only,
    )
