"""Read and check all pairs of a dataset in threads, and reuse what earlier runs finished."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.building import Building
from udaseg.data.convert import Checked, convert
from udaseg.data.declaration import Declaration
from udaseg.data.manifest import Row
from udaseg.data.pairs import Pair, Pairs
from udaseg.data.refusals import unknown_ids
from udaseg.data.room import room
from udaseg.data.source import Rules
from udaseg.data.threads import in_threads
from udaseg.errors import DataError

_Job = tuple[str, Pair]


@dataclass
class Found:
    """The result of reading all pairs.

    Attributes:
        rows: The readable pairs, in order.
        bad: Files that cannot be used, with the reason.
        read: Pairs read in this run; the others come from an earlier run.
    """

    rows: list[Row] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    read: int = 0


def read_all(
    declaration: Declaration,
    pairs: Pairs,
    folder: Path,
    building: Building | None,
    rules: Rules,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Found:
    """Read every pair and write its label into `building`, unless that is None.

    Raises:
        DataError: A label has ids that the table does not define.
        EnvironmentFault: The disk is full.
    """
    jobs = [(split, pair) for split, members in pairs.splits.items() for pair in members]
    result = Found(bad=list(pairs.unpaired))
    unknown: Counter[int] = Counter()
    first_unknown: dict[int, Path] = {}
    label_folder = None if building is None else building.place
    if on_progress is not None:
        on_progress(0, len(jobs))

    def read(job: _Job) -> Checked:
        split, pair = job
        kept = None if building is None else building.kept(pair, split)
        if kept is not None:
            return Checked(kept, kept=True)
        return convert(pair, split, declaration, folder, label_folder, rules.on_mismatch)

    with room(label_folder or folder, lambda: _rest(jobs, result)):
        for done, ((_, pair), checked) in enumerate(in_threads(read, jobs, workers), 1):
            if checked.row is not None:
                result.rows.append(checked.row)
            result.bad += [checked.bad] if checked.bad else []
            result.read += not checked.kept
            for label_id in checked.unknown:
                first_unknown.setdefault(label_id, pair.label or pair.image)
            unknown.update(checked.unknown)
            if building is not None and checked.row and not (checked.kept or checked.unknown):
                building.note(checked.row)
            if on_progress is not None:
                on_progress(done, len(jobs))
    if unknown:
        raise DataError(unknown_ids(declaration, unknown, first_unknown))
    return result


def _rest(jobs: list[_Job], result: Found) -> int:
    """Return the approximate bytes of the labels that are still to be written."""
    sizes = [row.prepared.size for row in result.rows if row.prepared is not None]
    remaining = [pair.label for _, pair in jobs[len(result.rows) :] if pair.label is not None]
    if sizes:
        return len(remaining) * sum(sizes) // len(sizes)
    return sum(path.stat().st_size for path in remaining if path.is_file())
