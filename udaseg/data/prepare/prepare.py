"""Prepare a dataset: find it, pair it, check every file, write train-id labels and an index."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from udaseg.data.datasets.catalog import DOCUMENTS, resolve_declaration
from udaseg.data.datasets.declaration import Declaration, unknown_rule_message
from udaseg.data.datasets.index import read_index
from udaseg.data.datasets.pairs import DatasetFiles, find_pairs
from udaseg.data.prepare.convert import read_all
from udaseg.data.prepare.locate import (
    clear_leftovers,
    download_instructions,
    find_dataset_folder,
    unpack_archives,
    warn_of_new_archives,
)
from udaseg.data.prepare.manifest import read_manifest
from udaseg.data.prepare.refusals import check_bad_files
from udaseg.data.prepare.report import PrepareReport, build_report
from udaseg.data.prepare.rules import (
    STORED_LISTS,
    PrepareOptions,
    conversion_digest,
    read_source,
    sources_digest,
)
from udaseg.data.prepare.workspace import Workspace, clear_workspace, is_clean, recover
from udaseg.errors import DataError
from udaseg.files import disk_space, file_lock, sha256_of

log = logging.getLogger(__name__)


def prepare_dataset(
    name: str,
    *,
    root: Path,
    options: PrepareOptions | None = None,
    check_only: bool = False,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
    on_unpack: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Prepare a built-in dataset or a dataset YAML below `root`/prepared, and return a report.

    The user's own files are never written.

    Args:
        name: Name of a built-in dataset, or path of a dataset YAML.
        root: The folder of data and prepared datasets.
        options: Which files may be left out; None for the defaults.
        check_only: Check all files without writing.
        workers: Threads that decode; -1 uses one per core.
        on_progress: Called with the pairs done so far and in total.
        on_unpack: Called with the megabytes of archives unpacked so far and in total.

    Raises:
        DataError: Files are missing, or there are more faults than allowed; the message lists the
            first of each kind.
        EnvironmentFault: The disk is full; finished work is kept for the next run.
    """
    started = time.monotonic()
    options = options or PrepareOptions()
    declaration = _with_exclusions(resolve_declaration(name), options.exclude)
    if check_only:
        report = _check_without_writing(name, declaration, root, options, workers, on_progress)
    else:
        report = _prepare_or_reuse(declaration, root, options, workers, on_progress, on_unpack)
    warn_of_new_archives(declaration, root)
    report.unlabelled = tuple(
        split for split, samples in report.dataset.splits.items() if samples[0].label is None
    )
    report.expected = declaration.expected_counts
    report.seconds = time.monotonic() - started
    return report


def prepare_with_last_options(name: str, *, root: Path) -> PrepareReport:
    """Prepare a dataset by the rules of its last preparation, if there was one.

    Raises:
        DataError: See `prepare_dataset`.
    """
    stored = read_source(root / "prepared" / resolve_declaration(name).name)
    options = PrepareOptions(**stored["rules"]) if stored else PrepareOptions()
    options = replace(options, exclude=tuple(options.exclude))  # JSON has lists, no tuples
    return prepare_dataset(name, root=root, options=options)


def _with_exclusions(declaration: Declaration, exclude: Sequence[str]) -> Declaration:
    """Return the declaration with more rules whose files are excluded."""
    for name in exclude:
        if name not in declaration.rules:
            raise DataError(f"{declaration.name}: {unknown_rule_message(name, declaration.rules)}")
    return replace(declaration, exclude=tuple(dict.fromkeys((*declaration.exclude, *exclude))))


def _checked_pairs(
    declaration: Declaration, folder: Path, root: Path, options: PrepareOptions
) -> DatasetFiles:
    pairs = find_pairs(declaration, folder)
    user_defined = declaration.root is not None
    if pairs.splits_without_images and user_defined:
        missing = [f"images.{split}" for split in pairs.splits_without_images]
        raise DataError(f"{declaration.path}: no image below {folder} matches {', '.join(missing)}")
    if pairs.label_globs_without_match:
        globs = ", ".join(pairs.label_globs_without_match)
        raise DataError(
            f"{declaration.name}: {folder} has images, but no label matches {globs}\n"
            + (
                "  leave 'labels' out of the YAML for an unlabelled target"
                if user_defined
                else f"{download_instructions(declaration, root)}\n"
                "  or, for an unlabelled target, use the folder of the images instead"
            )
        )
    check_bad_files(declaration.name, pairs.unpaired, options.max_bad)
    return pairs


def _check_without_writing(
    name: str,
    declaration: Declaration,
    root: Path,
    options: PrepareOptions,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> PrepareReport:
    folder = find_dataset_folder(declaration, root)
    if folder is None:
        raise DataError(f"{name}: found only archives; prepare the dataset, or unpack them first")
    pairs = _checked_pairs(declaration, folder, root, options)
    result = read_all(
        declaration, pairs, folder, None, options, workers=workers, on_progress=on_progress
    )
    return build_report(declaration, pairs, result, folder, folder, options)


def _prepare_or_reuse(
    declaration: Declaration,
    root: Path,
    options: PrepareOptions,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    on_unpack: Callable[[int, int], None] | None,
) -> PrepareReport:
    final = root / "prepared" / declaration.name
    # check without the lock first: the dataset may be complete, in a read-only folder
    report = _stored_report(declaration, root, options) if is_clean(final) else None
    if report is None:
        with file_lock(final.with_name(f".{final.name}.lock")):
            recover(final)
            report = _stored_report(declaration, root, options)
            if report is None:
                report = _rebuild(declaration, root, options, workers, on_progress, on_unpack)
            clear_workspace(final)
    return report


def _stored_report(
    declaration: Declaration, root: Path, options: PrepareOptions
) -> PrepareReport | None:
    """Return the stored report if nothing has changed since, else None."""
    final = root / "prepared" / declaration.name
    stored = read_source(final)
    folder = find_dataset_folder(declaration, root)
    if stored is None or folder is None or len(stored["bad"]) > options.max_bad:
        return None
    pairs = _checked_pairs(declaration, folder, root, options)
    if stored["stamp"] != sources_digest(conversion_digest(declaration, folder, options), pairs):
        return None
    try:
        manifest = read_manifest(final)
        dataset = read_index(final)
        intact = all(sha256_of(final / name) == digest for name, digest in manifest.files.items())
    except (DataError, OSError):  # damaged: prepare it again
        return None
    labels = [row.prepared for row in manifest.rows if row.prepared is not None]
    if not intact or not all(label.matches(final / label.path) for label in labels):
        return None
    return PrepareReport(dataset, unchanged=True, **{key: stored[key] for key in STORED_LISTS})


def _rebuild(
    declaration: Declaration,
    root: Path,
    options: PrepareOptions,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    on_unpack: Callable[[int, int], None] | None,
) -> PrepareReport:
    """Read new and changed files, and replace the prepared folder atomically."""
    folder = find_dataset_folder(declaration, root)
    if folder is None:
        folder = unpack_archives(declaration, root, on_unpack)
        _warn_if_incomplete(declaration, folder)
    clear_leftovers(declaration, root)
    pairs = _checked_pairs(declaration, folder, root, options)
    label_digest = conversion_digest(declaration, folder, options)
    # before reading, so that later changes are detected
    stamp = sources_digest(label_digest, pairs)
    workspace = Workspace(root / "prepared" / declaration.name, folder, label_digest)
    try:
        workspace.resume()
        result = read_all(
            declaration, pairs, folder, workspace, options, workers=workers, on_progress=on_progress
        )
        report = build_report(declaration, pairs, result, folder, workspace.final, options)
        reported = {key: getattr(report, key) for key in STORED_LISTS}
        with disk_space(workspace.temporary_folder, lambda: DOCUMENTS * len(result.rows)):
            workspace.finish(report.dataset, result.rows, {"stamp": stamp, **reported}, options)
    finally:
        workspace.close()
    report.dataset = read_index(workspace.final)
    return report


def _warn_if_incomplete(declaration: Declaration, folder: Path) -> None:
    """Warn of fewer images than published: nothing else reveals a truncated tar."""
    splits = find_pairs(declaration, folder).splits
    for split, expected in declaration.expected_counts.items():
        if split in splits and len(splits[split]) < expected:
            log.warning(
                "%s: %s has %d images, but the published set has %d; is an archive missing?",
                declaration.name,
                split,
                len(splits[split]),
                expected,
            )
