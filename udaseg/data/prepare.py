"""Preparing a dataset: find it, pair it, check every file, write train-id labels and an index."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2

from udaseg.data.catalog_list import builtin, builtin_names
from udaseg.data.convert import Checked, Mismatch, convert
from udaseg.data.declaration import Declaration, read_declaration
from udaseg.data.document import did_you_mean
from udaseg.data.images import write_atomic
from udaseg.data.index import (
    INDEX_NAME,
    PreparedDataset,
    Sample,
    index_document,
    read_index,
)
from udaseg.data.locate import clear_leftovers, how_to_get, located, unpacked
from udaseg.data.lock import held
from udaseg.data.pairs import Pair, Pairs, pairs_of
from udaseg.data.source import REPORTED, SOURCE_NAME, Rules, stamp_of, stored_source
from udaseg.errors import DataError

_SHOWN = 10


@dataclass
class PrepareReport:
    """What preparing a dataset found.

    Attributes:
        dataset: The result; with `check_only` it is not on disk.
        bad: Files that cannot be used, with the reason; they are left out.
        excluded: Pairs left out by a named rule, with the reason.
        blank: Images of a single colour; they are kept.
        missing: Declared splits of a built-in set that are not here.
        unlabelled: Splits without labels.
        expected: Published number of images of each split.
        seconds: Wall time.
        unchanged: It was prepared before and nothing had changed.
    """

    dataset: PreparedDataset
    bad: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unlabelled: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    unchanged: bool = False


def prepare_dataset(
    name: str,
    *,
    root: Path,
    check_only: bool = False,
    max_bad: int = 0,
    on_mismatch: Mismatch = "exclude",
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Prepare a built-in set or a dataset YAML below `root`/prepared, and report on it.

    The user's own files are read and never written.

    Args:
        name: Name of a built-in set, or path of a dataset YAML.
        root: Where data lie and prepared sets go.
        check_only: Look at everything and write nothing.
        max_bad: Files that may be damaged or unpaired; they are left out.
        on_mismatch: What to do when a label has another size than its image.
        workers: Threads that decode; -1 takes one a core.
        on_progress: Called with the pairs done and the pairs in all.

    Raises:
        DataError: Missing, or with more faults than allowed; lists the first of each kind.
    """
    started = time.monotonic()
    declaration = declared(name)
    rules = Rules(max_bad, on_mismatch)
    if check_only:
        folder = located(declaration, root)
        if folder is None:
            raise DataError(f"{name}: only archives are there; prepare it, or unpack them first")
        pairs = _paired(declaration, folder, root, rules)
        report = _read_all(declaration, pairs, folder, None, rules, workers, on_progress)
    # first without the lock: all may be done, in a folder that cannot be written
    elif (unchanged := _unchanged(declaration, root, rules)) is not None:
        report = unchanged
    else:
        with held(root / "prepared" / f".{declaration.name}.lock"):
            report = _unchanged(declaration, root, rules) or _rebuilt(
                declaration, root, rules, workers, on_progress
            )
    report.unlabelled = tuple(
        split for split, samples in report.dataset.splits.items() if samples[0].label is None
    )
    report.expected = declaration.expected
    report.seconds = time.monotonic() - started
    return report


def prepare_as_before(name: str, *, root: Path) -> PrepareReport:
    """Prepare a dataset by the rules that it was prepared by last, if it was.

    Raises:
        DataError: As `prepare_dataset`.
    """
    stored = stored_source(root / "prepared" / declared(name).name)
    rules = Rules(**stored["rules"]) if stored else Rules()
    return prepare_dataset(name, root=root, max_bad=rules.max_bad, on_mismatch=rules.on_mismatch)


def declared(name: str) -> Declaration:
    """Return the declaration that `name` means: a YAML's path or a built-in name.

    Raises:
        DataError: Neither.
    """
    if name.endswith((".yaml", ".yml")):
        return read_declaration(Path(name))
    known = builtin_names()
    if name in known:
        return builtin(name)
    raise DataError(
        f"{name}: no dataset of that name{did_you_mean(name, known)}; there are "
        f"{', '.join(known)}, or give a dataset YAML"
    )


def _paired(declaration: Declaration, folder: Path, root: Path, rules: Rules) -> Pairs:
    pairs = pairs_of(declaration, folder)
    own = declaration.root is not None
    if pairs.without_files and own:
        missing = [f"images.{split}" for split in pairs.without_files]
        raise DataError(f"{declaration.path}: no image below {folder} matches {', '.join(missing)}")
    if pairs.without_labels:
        globs = ", ".join(pairs.without_labels)
        raise DataError(
            f"{declaration.name}: {folder} has images, but no label matches {globs}\n"
            + (
                "  leave 'labels' out of the YAML for an unlabelled target"
                if own
                else f"{how_to_get(declaration, root)}\n"
                "  or, as an unlabelled target, name the folder of the images instead"
            )
        )
    _refuse_too_many(declaration.name, pairs.unpaired, rules)
    return pairs


def _unchanged(declaration: Declaration, root: Path, rules: Rules) -> PrepareReport | None:
    """Return the report of last time if nothing has changed since."""
    final = root / "prepared" / declaration.name
    stored = stored_source(final)
    folder = located(declaration, root)
    if stored is None or folder is None or len(stored["bad"]) > rules.max_bad:
        return None
    pairs = _paired(declaration, folder, root, rules)
    if stored["stamp"] != stamp_of(declaration, pairs, folder, rules):
        return None
    dataset = read_index(final)
    for samples in dataset.splits.values():
        for sample in samples:
            if sample.label is not None and not (final / sample.label).is_file():
                return None
    return PrepareReport(dataset, unchanged=True, **{key: stored[key] for key in REPORTED})


def _rebuilt(
    declaration: Declaration,
    root: Path,
    rules: Rules,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> PrepareReport:
    """Read everything and put the prepared folder in its place, whole or not at all."""
    clear_leftovers(declaration, root)
    folder = located(declaration, root) or unpacked(declaration, root)
    pairs = _paired(declaration, folder, root, rules)
    stamp = stamp_of(declaration, pairs, folder, rules)
    final = root / "prepared" / declaration.name
    building = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
    try:
        report = _read_all(declaration, pairs, folder, building, rules, workers, on_progress)
        index = json.dumps(index_document(report.dataset), allow_nan=False)
        write_atomic(building / INDEX_NAME, index.encode())
        source = {"stamp": stamp, "rules": asdict(rules)}
        source |= {key: getattr(report, key) for key in REPORTED}
        write_atomic(building / SOURCE_NAME, json.dumps(source, allow_nan=False).encode())
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        building.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    report.dataset = read_index(final)
    return report


def _read_all(
    declaration: Declaration,
    pairs: Pairs,
    folder: Path,
    into: Path | None,
    rules: Rules,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> PrepareReport:
    """Read every pair, write labels below `into`, and return the report.

    Raises:
        DataError: Unknown ids, more bad files than allowed, or a split of which nothing is left.
    """
    jobs = [(split, pair) for split, found in pairs.splits.items() for pair in found]
    samples: dict[str, list[Sample]] = {split: [] for split in pairs.splits}
    bad, excluded, blank = list(pairs.unpaired), [], []
    unknown: Counter[int] = Counter()
    first_unknown: dict[int, Path] = {}

    def read(job: tuple[str, Pair]) -> Checked:
        return convert(job[1], job[0], declaration, folder, into, rules.on_mismatch)

    for done, ((split, pair), checked) in enumerate(_in_threads(read, jobs, workers), 1):
        if checked.sample is not None:
            samples[split].append(checked.sample)
        bad += [checked.bad] if checked.bad else []
        excluded += [checked.excluded] if checked.excluded else []
        blank += [str(pair.image)] if checked.blank else []
        for number in checked.unknown:
            first_unknown.setdefault(number, pair.label or pair.image)
        unknown.update(checked.unknown)
        if on_progress is not None:
            on_progress(done, len(jobs))
    if unknown:
        raise DataError(_unknown_ids(declaration, unknown, first_unknown))
    _refuse_too_many(declaration.name, bad, rules)
    _refuse_nothing_left(declaration.name, samples, bad, excluded)
    dataset = PreparedDataset(
        declaration.name,
        into or folder,
        folder.resolve(),
        None if declaration.table is None else declaration.table.classes,
        {split: tuple(found) for split, found in samples.items()},
    )
    return PrepareReport(dataset, bad, excluded, blank, pairs.without_files)


def _in_threads(
    read: Callable[[tuple[str, Pair]], Checked], jobs: list[tuple[str, Pair]], workers: int
) -> Iterator[tuple[tuple[str, Pair], Checked]]:
    """Yield each job with its outcome, in order; decoding lets the threads run at once."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers if workers > 0 else os.cpu_count())
    try:
        yield from zip(jobs, pool.map(read, jobs), strict=True)
    finally:  # on Ctrl-C too: what has not begun is dropped
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _unknown_ids(
    declaration: Declaration, unknown: Mapping[int, int], first: Mapping[int, Path]
) -> str:
    def shown(number: int) -> str:
        if declaration.label_format != "rgb":
            return str(number)
        return str([number >> 16, number >> 8 & 255, number & 255])

    lines = [f"{declaration.name}: labels hold ids that are in no class and not in 'ignore':"]
    for number, count in sorted(unknown.items(), key=lambda item: -item[1])[:_SHOWN]:
        lines.append(f"  {shown(number)}: {count} pixels, first in {first[number]}")
    if len(unknown) > _SHOWN:
        lines.append(f"  and {len(unknown) - _SHOWN} more")
    if declaration.root is None:
        lines.append("  these are not the labels of that set; is it another version of it?")
    else:
        lines.append("  name them in a class, or list them in 'ignore' of the dataset YAML")
    return "\n".join(lines)


def _refuse_too_many(name: str, bad: list[str], rules: Rules) -> None:
    if len(bad) > rules.max_bad:
        advice = f"mend or remove them, or leave them out with --max-bad {len(bad)}"
        raise DataError(f"{name}: {len(bad)} files cannot be used:\n{_first(bad)}\n  {advice}")


def _refuse_nothing_left(
    name: str, samples: Mapping[str, list[Sample]], bad: list[str], excluded: list[str]
) -> None:
    for split, found in samples.items():
        if not found:
            hint = "\n  --on-mismatch resize gives labels the size of their image"
            raise DataError(
                f"{name}: nothing is left of split '{split}':\n{_first([*excluded, *bad])}"
                + (hint if excluded else "")
            )


def _first(lines: list[str]) -> str:
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"  and {len(lines) - _SHOWN} more")
    return "\n".join(shown)
