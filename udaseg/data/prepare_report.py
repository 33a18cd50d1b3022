"""What preparing a dataset found, and whether that is good enough."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.declaration import Declaration
from udaseg.data.index import PreparedDataset, Sample
from udaseg.data.pairs import Pairs
from udaseg.data.reading import Found
from udaseg.data.refusals import refuse_nothing_left, refuse_too_many
from udaseg.data.source import Rules


@dataclass
class PrepareReport:
    """What preparing a dataset found.

    Attributes:
        dataset: The result; with `check_only` it is not on disk.
        bad: Files that cannot be used, with the reason; they are left out.
        excluded: Pairs left out by a named rule, with the reason.
        known: Pairs that a named rule would leave out; they are kept.
        blank: Images of a single colour; they are kept.
        missing: Declared splits of a built-in set that are not here.
        unlabelled: Splits without labels.
        expected: Published number of images of each split.
        seconds: Wall time.
        read: Pairs that were read now; the others are as an earlier run read them.
        unchanged: It was prepared before and nothing had changed.
    """

    dataset: PreparedDataset
    bad: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unlabelled: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    read: int = 0
    unchanged: bool = False


def report_on(
    declaration: Declaration,
    pairs: Pairs,
    found: Found,
    folder: Path,
    final: Path,
    rules: Rules,
) -> PrepareReport:
    """Return the report on what was read.

    Raises:
        DataError: More bad files than allowed, or a split of which nothing is left.
    """
    samples: dict[str, list[Sample]] = {split: [] for split in pairs.splits}
    for row in found.rows:
        if row.sample is not None:
            samples[row.split].append(row.sample)
    excluded = [*pairs.excluded, *(row.excluded for row in found.rows if row.excluded)]
    blank = [row.image.path for row in found.rows if row.blank]
    refuse_too_many(declaration.name, found.bad, rules.max_bad)
    refuse_nothing_left(declaration.name, samples, found.bad, excluded)
    dataset = PreparedDataset(
        declaration.name,
        final,
        folder.resolve(),
        None if declaration.table is None else declaration.table.classes,
        {split: tuple(those) for split, those in samples.items()},
        frozenset(blank),
    )
    return PrepareReport(
        dataset,
        *(found.bad, excluded, pairs.known),
        *([str(folder / path) for path in blank], pairs.without_files),
        read=found.read,
    )
