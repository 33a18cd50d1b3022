"""Preparing a dataset: find it, pair it, check every file, write train-id labels and an index."""

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
"""Bytes of index and manifest for a pair, about."""


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
    """Prepare a built-in set or a dataset YAML below `root`/prepared, and report on it.

    The user's own files are read and never written.

    Args:
        name: Name of a built-in set, or path of a dataset YAML.
        root: Where data lie and prepared sets go.
        check_only: Look at everything and write nothing.
        max_bad: Files that may be damaged or unpaired; they are left out.
        on_mismatch: What to do when a label has another size than its image.
        exclude: Named rules of the dataset whose files are left out, besides those of its YAML.
        workers: Threads that decode; -1 takes one a core.
        on_progress: Called with the pairs done and the pairs in all.
        on_unpack: Called with the megabytes of archives that are unpacked, and those in all.

    Raises:
        DataError: Missing, or with more faults than allowed; lists the first of each kind.
        EnvironmentFault: No room on the disk; what is done is kept for the next run.
    """
    started = time.monotonic()
    declaration = _without(declared(name), exclude)
    rules = Rules(max_bad, on_mismatch, tuple(exclude))
    if check_only:
        folder = located(declaration, root)
        if folder is None:
            raise DataError(f"{name}: only archives are there; prepare it, or unpack them first")
        pairs = _paired(declaration, folder, root, rules)
        found = read_all(
            declaration, pairs, folder, None, rules, workers=workers, on_progress=on_progress
        )
        report = report_on(declaration, pairs, found, folder, folder, rules)
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
    """Prepare a dataset by the rules that it was prepared by last, if it was.

    Raises:
        DataError: As `prepare_dataset`.
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


def _without(declaration: Declaration, exclude: Sequence[str]) -> Declaration:
    """Return a declaration that leaves out the files of more rules."""
    for name in exclude:
        if name not in declaration.rules:
            raise DataError(f"{declaration.name}: {unknown_rule(name, declaration.rules)}")
    return replace(declaration, exclude=tuple(dict.fromkeys((*declaration.exclude, *exclude))))


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
    # first without the lock: all may be done, in a folder that cannot be written
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
    """Return the report of last time if nothing has changed since."""
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
        sound = all(sha256_of(final / name) == digest for name, digest in manifest.files.items())
    except (DataError, OSError):  # damaged; it is made again
        return None
    labels = [row.prepared for row in manifest.rows if row.prepared is not None]
    if not sound or not all(label.holds(final / label.path) for label in labels):
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
    """Read what is new and put the prepared folder in its place, whole or not at all."""
    folder = located(declaration, root)
    if folder is None:
        folder = unpacked(declaration, root, on_unpack)
        _tell_if_short(declaration, folder)
    clear_leftovers(declaration, root)
    pairs = _paired(declaration, folder, root, rules)
    meaning = meaning_of(declaration, folder, rules)
    stamp = stamp_of(meaning, pairs)  # before they are read: a later change is found as one
    building = Building(root / "prepared" / declaration.name, folder, meaning)
    try:
        building.begin()
        found = read_all(
            declaration, pairs, folder, building, rules, workers=workers, on_progress=on_progress
        )
        report = report_on(declaration, pairs, found, folder, building.final, rules)
        noted = {key: getattr(report, key) for key in REPORTED}
        with room(building.place, lambda: _DOCUMENTS * len(found.rows)):
            building.finish(report.dataset, found.rows, {"stamp": stamp, **noted}, rules)
    finally:
        building.close()
    report.dataset = read_index(building.final)
    return report


def _tell_if_short(declaration: Declaration, folder: Path) -> None:
    """Warn of fewer images than were published: of a tar that was cut off, nothing else tells."""
    splits = pairs_of(declaration, folder).splits
    for split, expected in declaration.expected.items():
        if split in splits and len(splits[split]) < expected:
            log.warning(
                "%s: %s has %d images, but the published set has %d; is an archive missing?",
                *(declaration.name, split, len(splits[split]), expected),
            )
