"""Reading all pairs of a set in threads: what is done is kept, the rest is read and checked."""

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
    """What reading all pairs gave.

    Attributes:
        rows: The pairs that can be read, in order.
        bad: Files that cannot be used, with the reason.
        read: Pairs that were read now; the others are as an earlier run read them.
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
        DataError: A label holds ids that the table does not know.
        EnvironmentFault: No room on the disk.
    """
    jobs = [(split, pair) for split, found in pairs.splits.items() for pair in found]
    found = Found(bad=list(pairs.unpaired))
    unknown: Counter[int] = Counter()
    first_unknown: dict[int, Path] = {}
    into = None if building is None else building.place
    if on_progress is not None:
        on_progress(0, len(jobs))

    def read(job: _Job) -> Checked:
        split, pair = job
        kept = None if building is None else building.kept(pair, split)
        if kept is not None:
            return Checked(kept, kept=True)
        return convert(pair, split, declaration, folder, into, rules.on_mismatch)

    with room(into or folder, lambda: _rest(jobs, found)):
        for done, ((_, pair), checked) in enumerate(in_threads(read, jobs, workers), 1):
            if checked.row is not None:
                found.rows.append(checked.row)
            found.bad += [checked.bad] if checked.bad else []
            found.read += not checked.kept
            for number in checked.unknown:
                first_unknown.setdefault(number, pair.label or pair.image)
            unknown.update(checked.unknown)
            if building is not None and checked.row and not (checked.kept or checked.unknown):
                building.note(checked.row)
            if on_progress is not None:
                on_progress(done, len(jobs))
    if unknown:
        raise DataError(unknown_ids(declaration, unknown, first_unknown))
    return found


def _rest(jobs: list[_Job], found: Found) -> int:
    """Return about how many bytes the labels take that are not written yet."""
    sizes = [row.prepared.size for row in found.rows if row.prepared is not None]
    left = [pair.label for _, pair in jobs[len(found.rows) :] if pair.label is not None]
    if sizes:
        return len(left) * sum(sizes) // len(sizes)
    return sum(path.stat().st_size for path in left if path.is_file())
