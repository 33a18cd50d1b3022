"""Prepare a dataset: find it, pair it, check every file, write train-id labels and an index."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from udaseg.data.building import Building, clear_building, settle, settled
from udaseg.data.catalog_list import builtin, builtin_names
from udaseg.data.convert import Mismatch
from udaseg.data.declaration import Declaration, read_declaration
from udaseg.data.document import did_you_mean
from udaseg.data.index import read_index
from udaseg.data.known_files import unknown_rule
from udaseg.data.locate import (
    clear_leftovers,
    how_to_get,
    located,
    tell_of_later_archives,
    unpacked,
)
from udaseg.data.lock import held
from udaseg.data.manifest import read_manifest, sha256_of
from udaseg.data.pairs import Pairs, pairs_of
from udaseg.data.prepare_report import PrepareReport, report_on
from udaseg.data.reading import read_all
from udaseg.data.refusals import refuse_too_many
from udaseg.data.room import room
from udaseg.data.source import REPORTED, Rules, meaning_of, stamp_of, stored_source
from udaseg.errors import DataError

log = logging.getLogger(__name__)

_DOCUMENTS = 1000
"""Approximate bytes of index and manifest per pair."""


def prepare_dataset(
    name: str,
    *,
    root: Path,
    check_only: bool = False,
    max_bad: int = 0,
    on_mismatch: Mismatch = "exclude",
    exclude: Sequence[str] = (),
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
    on_unpack: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Prepare a built-in dataset or a dataset YAML below `root`/prepared, and return a report.

    The user's own files are never written.

    Args:
        name: Name of a built-in dataset, or path of a dataset YAML.
        root: The folder of data and prepared datasets.
        check_only: Check all files without writing.
        max_bad: Maximum number of damaged or unpaired files; they are left out.
        on_mismatch: What to do if label and image differ in size.
        exclude: Named rules whose files are excluded, besides those listed in the YAML.
        workers: Threads that decode; -1 uses one per core.
        on_progress: Called with the pairs done so far and in total.
        on_unpack: Called with the megabytes of archives unpacked so far and in total.

    Raises:
        DataError: Files are missing, or there are more faults than allowed; the message lists the
            first of each kind.
        EnvironmentFault: The disk is full; finished work is kept for the next run.
    """
    started = time.monotonic()
    declaration = _without(declared(name), exclude)
    rules = Rules(max_bad, on_mismatch, tuple(exclude))
    if check_only:
        folder = located(declaration, root)
        if folder is None:
            raise DataError(
                f"{name}: found only archives; prepare the dataset, or unpack them first"
            )
        pairs = _paired(declaration, folder, root, rules)
        result = read_all(
            declaration, pairs, folder, None, rules, workers=workers, on_progress=on_progress
        )
        report = report_on(declaration, pairs, result, folder, folder, rules)
    else:
        report = _up_to_date(declaration, root, rules, workers, on_progress, on_unpack)
    tell_of_later_archives(declaration, root)
    report.unlabelled = tuple(
        split for split, samples in report.dataset.splits.items() if samples[0].label is None
    )
    report.expected = declaration.expected
    report.seconds = time.monotonic() - started
    return report


def prepare_as_before(name: str, *, root: Path) -> PrepareReport:
    """Prepare a dataset by the rules of its last preparation, if there was one.

    Raises:
        DataError: See `prepare_dataset`.
    """
    stored = stored_source(root / "prepared" / declared(name).name)
    rules = Rules(**stored["rules"]) if stored else Rules()
    return prepare_dataset(
        name,
        root=root,
        max_bad=rules.max_bad,
        on_mismatch=rules.on_mismatch,
        exclude=rules.exclude,
    )


def declared(name: str) -> Declaration:
    """Return the declaration of a dataset, given a YAML's path or a built-in name.

    Raises:
        DataError: `name` is neither.
    """
    if name.endswith((".yaml", ".yml")):
        return read_declaration(Path(name))
    known = builtin_names()
    if name in known:
        return builtin(name)
    raise DataError(
        f"{name}: no dataset of that name{did_you_mean(name, known)}; use one of "
        f"{', '.join(known)}, or a dataset YAML"
    )


def _without(declaration: Declaration, exclude: Sequence[str]) -> Declaration:
    """Return the declaration with more rules whose files are excluded."""
    for name in exclude:
        if name not in declaration.rules:
            raise DataError(f"{declaration.name}: {unknown_rule(name, declaration.rules)}")
    return replace(declaration, exclude=tuple(dict.fromkeys((*declaration.exclude, *exclude))))


def _paired(declaration: Declaration, folder: Path, root: Path, rules: Rules) -> Pairs:
    pairs = pairs_of(declaration, folder)
    user_defined = declaration.root is not None
    if pairs.without_files and user_defined:
        missing = [f"images.{split}" for split in pairs.without_files]
        raise DataError(f"{declaration.path}: no image below {folder} matches {', '.join(missing)}")
    if pairs.without_labels:
        globs = ", ".join(pairs.without_labels)
        raise DataError(
            f"{declaration.name}: {folder} has images, but no label matches {globs}\n"
            + (
                "  leave 'labels' out of the YAML for an unlabelled target"
                if user_defined
                else f"{how_to_get(declaration, root)}\n"
                "  or, for an unlabelled target, use the folder of the images instead"
            )
        )
    refuse_too_many(declaration.name, pairs.unpaired, rules.max_bad)
    return pairs


def _up_to_date(
    declaration: Declaration,
    root: Path,
    rules: Rules,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    on_unpack: Callable[[int, int], None] | None,
) -> PrepareReport:
    final = root / "prepared" / declaration.name
    # check without the lock first: the dataset may be complete, in a read-only folder
    report = _unchanged(declaration, root, rules) if settled(final) else None
    if report is None:
        with held(final.with_name(f".{final.name}.lock")):
            settle(final)
            report = _unchanged(declaration, root, rules)
            if report is None:
                report = _rebuilt(declaration, root, rules, workers, on_progress, on_unpack)
            clear_building(final)
    return report


def _unchanged(declaration: Declaration, root: Path, rules: Rules) -> PrepareReport | None:
    """Return the stored report if nothing has changed since, else None."""
    final = root / "prepared" / declaration.name
    stored = stored_source(final)
    folder = located(declaration, root)
    if stored is None or folder is None or len(stored["bad"]) > rules.max_bad:
        return None
    pairs = _paired(declaration, folder, root, rules)
    if stored["stamp"] != stamp_of(meaning_of(declaration, folder, rules), pairs):
        return None
    try:
        manifest = read_manifest(final)
        dataset = read_index(final)
        intact = all(sha256_of(final / name) == digest for name, digest in manifest.files.items())
    except (DataError, OSError):  # damaged: prepare it again
        return None
    labels = [row.prepared for row in manifest.rows if row.prepared is not None]
    if not intact or not all(label.holds(final / label.path) for label in labels):
        return None
    return PrepareReport(dataset, unchanged=True, **{key: stored[key] for key in REPORTED})


def _rebuilt(
    declaration: Declaration,
    root: Path,
    rules: Rules,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    on_unpack: Callable[[int, int], None] | None,
) -> PrepareReport:
    """Read new and changed files, and replace the prepared folder atomically."""
    folder = located(declaration, root)
    if folder is None:
        folder = unpacked(declaration, root, on_unpack)
        _tell_if_short(declaration, folder)
    clear_leftovers(declaration, root)
    pairs = _paired(declaration, folder, root, rules)
    meaning = meaning_of(declaration, folder, rules)
    stamp = stamp_of(meaning, pairs)  # before reading, so that later changes are detected
    building = Building(root / "prepared" / declaration.name, folder, meaning)
    try:
        building.begin()
        result = read_all(
            declaration, pairs, folder, building, rules, workers=workers, on_progress=on_progress
        )
        report = report_on(declaration, pairs, result, folder, building.final, rules)
        reported = {key: getattr(report, key) for key in REPORTED}
        with room(building.place, lambda: _DOCUMENTS * len(result.rows)):
            building.finish(report.dataset, result.rows, {"stamp": stamp, **reported}, rules)
    finally:
        building.close()
    report.dataset = read_index(building.final)
    return report


def _tell_if_short(declaration: Declaration, folder: Path) -> None:
    """Warn of fewer images than published: nothing else reveals a truncated tar."""
    splits = pairs_of(declaration, folder).splits
    for split, expected in declaration.expected.items():
        if split in splits and len(splits[split]) < expected:
            log.warning(
                "%s: %s has %d images, but the published set has %d; is an archive missing?",
                declaration.name,
                split,
                len(splits[split]),
                expected,
            )
