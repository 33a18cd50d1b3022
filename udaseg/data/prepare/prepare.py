"""Prepare a dataset: find it, pair it, check every file, write train-id labels and an index."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.data.datasets.catalog import DOCUMENTS, builtin_names, resolve_declaration
from udaseg.data.datasets.declaration import Declaration, unknown_rule_message
from udaseg.data.datasets.index import read_index
from udaseg.data.datasets.pairs import DatasetFiles, find_pairs
from udaseg.data.files.find import find_files, static_prefix
from udaseg.data.labels.objects.shared import forget_shared
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.prepare import locate, rules
from udaseg.data.prepare.convert import read_all
from udaseg.data.prepare.label_guess import group_labels
from udaseg.data.prepare.manifest import LabelReader, read_manifest, recorded_package
from udaseg.data.prepare.report import (
    Faults,
    PrepareReport,
    build_report,
    check_bad_files,
    reduced_images,
)
from udaseg.data.prepare.rules import TOYLAND, CacheOptions, Names, PrepareOptions
from udaseg.data.prepare.workspace import Workspace, clear_workspace, is_clean, recover
from udaseg.data.toyland.writer import make_toyland
from udaseg.display.progress import LazyProgress
from udaseg.errors import DataError, UsageError
from udaseg.files import disk_space, file_lock, sha256_of
from udaseg.sizes import distorts
from udaseg.text import format_size, most_common_text

log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]


def prepare(
    names: Names, *, root: str | os.PathLike[str] = "data", options: PrepareOptions | None = None
) -> list[PrepareReport]:
    """Check data sets, index them below `root`/prepared, and return a report on each.

    Labels are written as train ids; the user's own files are never written. A data set that fails
    does not stop the others.

    Args:
        names: Built-in names or dataset YAMLs, or one of them. `toyland` is rendered first, and
            means its source and its target.
        root: Folder of downloaded data and of prepared data sets.
        options: None for the defaults.

    Raises:
        SomeDataFailed: Data sets are missing or damaged, a `DataError`: the message lists all of
            them, `finished` has the reports on the others.
        EnvironmentFault: The disk is full, or a package is missing; finished work is kept for the
            next run.
        UsageError: `check_only` is combined with a cache.

    Example:
        (report,) = udaseg.prepare("my_city.yaml")
        report.counts, report.classes, report.excluded
        source, target = udaseg.prepare(["gta5", "cityscapes"], root="/datasets")
    """
    root, options = Path(root), options or PrepareOptions()
    if options.check_only and options.cache is not None:
        raise UsageError("check_only writes nothing; leave out the cache")
    faults, reports = Faults(), []
    toyland_done = options.check_only
    for name in rules.expand_names(names):
        with faults.collected():
            if name in TOYLAND and not toyland_done:
                _render_toyland(root, options)
                toyland_done = True
            reports.append(_prepare_one(name, root, options))
    if options.cache is not None:
        for report in reports:
            with faults.collected():
                _add_cache(report, options.cache, options.workers)
    faults.raise_if_any(reports)
    return reports


def _render_toyland(root: Path, options: PrepareOptions) -> None:
    log.info("rendering toyland in %s", root / "toyland")
    with LazyProgress("render toyland") as progress:
        make_toyland(root, seed=options.seed, size=options.size, on_progress=progress)


def _prepare_one(name: str, root: Path, options: PrepareOptions) -> PrepareReport:
    stem = Path(name).stem
    with (
        LazyProgress(f"unpack {stem}", "MB") as on_unpack,
        LazyProgress(f"prepare {stem}") as on_progress,
    ):
        return prepare_dataset(
            name, root=root, options=options, on_progress=on_progress, on_unpack=on_unpack
        )


def _add_cache(report: PrepareReport, options: CacheOptions, workers: int) -> None:
    samples = list(report.samples)
    distorted = [s for s in samples if distorts((s.height, s.width), options.size)]
    if distorted:
        log.warning(
            "--cache %s (width x height) changes the aspect ratio of %d of %d images, such as one "
            "of %s",
            format_size(options.size),
            len(distorted),
            len(samples),
            format_size((distorted[0].height, distorted[0].width)),
        )
    with LazyProgress(f"cache {report.name}") as on_progress:
        report.cache = write_cache(
            report.dataset,
            options.size,
            options.format,
            resampling=options.resampling,
            workers=workers,
            on_progress=on_progress,
        )


def prepare_dataset(
    name: str,
    *,
    root: Path,
    options: PrepareOptions | None = None,
    on_progress: OnProgress | None = None,
    on_unpack: OnProgress | None = None,
) -> PrepareReport:
    """Prepare one data set, without rendering toyland or writing a cache; see `prepare`.

    Args:
        name: Name of a built-in dataset, or path of a dataset YAML.
        root: The folder of data and prepared datasets.
        options: None for the defaults.
        on_progress: Called with the pairs done so far and in total.
        on_unpack: Called with the megabytes of archives unpacked so far and in total.
    """
    started = time.monotonic()
    options = options or PrepareOptions()
    declaration = _with_exclusions(find_declaration(name, root), options.exclude)
    preparation = _Preparation(declaration, root, options, on_progress, on_unpack)
    try:
        report = preparation.check() if options.check_only else preparation.run()
    finally:
        forget_shared()
    locate.warn_of_new_archives(declaration, root)
    report.expected = declaration.expected_counts
    report.seconds = time.monotonic() - started
    return report


def prepare_with_last_options(name: str, *, root: Path) -> PrepareReport:
    """Prepare a dataset by the rules of its last preparation, if there was one."""
    stored = rules.read_source(root / "prepared" / find_declaration(name, root).name)
    options = PrepareOptions(**stored["rules"]) if stored else PrepareOptions()
    options = replace(options, exclude=tuple(options.exclude))  # JSON has lists, no tuples
    return prepare_dataset(name, root=root, options=options)


def find_declaration(name: str, root: Path) -> Declaration:
    """Return the declaration of a dataset; a label format that is prepared needs no package."""
    folder = locate.prepared_folder(name, root)
    if folder is not None and name not in builtin_names():
        owner = rules.owner_of(folder)[0]
        source = "a dataset YAML" if owner is None else str(owner)
        raise DataError(f"{name}: is prepared already; to prepare it again, name {source}")
    return resolve_declaration(
        name,
        recorded_package=lambda dataset, label_format: recorded_package(
            root / "prepared" / dataset, label_format
        ),
    )


def _with_exclusions(declaration: Declaration, exclude: Sequence[str]) -> Declaration:
    """Return the declaration with more rules whose files are excluded."""
    for name in exclude:
        if name not in declaration.rules:
            raise DataError(f"{declaration.name}: {unknown_rule_message(name, declaration.rules)}")
    return replace(declaration, exclude=tuple(dict.fromkeys((*declaration.exclude, *exclude))))


@dataclass(frozen=True)
class _Preparation:
    """The preparation of one data set."""

    declaration: Declaration
    root: Path
    options: PrepareOptions
    on_progress: OnProgress | None
    on_unpack: OnProgress | None

    @property
    def final(self) -> Path:
        """The prepared folder."""
        return self.root / "prepared" / self.declaration.name

    def check(self) -> PrepareReport:
        """Read all files and write nothing."""
        folder = locate.find_dataset_folder(self.declaration, self.root)
        if folder is None:
            raise DataError(
                f"{self.declaration.name}: found only archives; prepare the dataset, or unpack "
                "them first"
            )
        pairs = self._checked_pairs(folder)
        result = read_all(self.declaration, pairs, folder, None, self.options, self.on_progress)
        return build_report(self.declaration, pairs, result, folder, folder, self.options)

    def run(self) -> PrepareReport:
        """Reuse the prepared folder if nothing has changed, else build it again."""
        # check without the lock first: the dataset may be complete, in a read-only folder
        report = self._stored_report() if is_clean(self.final) else None
        if report is None:
            with file_lock(self.final.with_name(f".{self.final.name}.lock")):
                recover(self.final)
                report = self._stored_report() or self._rebuild()
                clear_workspace(self.final)
        return report

    def _checked_pairs(self, folder: Path) -> DatasetFiles:
        declaration = self.declaration
        pairs = find_pairs(declaration, folder)
        user_defined = declaration.root is not None
        if pairs.splits_without_images and user_defined:
            missing = ", ".join(f"images.{split}" for split in pairs.splits_without_images)
            raise DataError(f"{declaration.path}: no image below {folder} matches {missing}")
        if pairs.label_globs_without_match:
            advice = "  leave 'labels' out of the YAML for an unlabelled target"
            if not user_defined:
                advice = (
                    f"{locate.download_instructions(declaration, self.root)}\n"
                    "  or, for an unlabelled target, use the folder of the images instead"
                )
            else:
                advice = f"{_files_there(folder, pairs.label_globs_without_match)}{advice}"
            globs = ", ".join(pairs.label_globs_without_match)
            raise DataError(
                f"{declaration.name}: {folder} has images, but no label matches {globs}\n{advice}"
            )
        hint = "" if any(pairs.splits.values()) else _matching_hint(pairs)
        bad = list(map(str, pairs.unpaired))
        check_bad_files(declaration.name, bad, self.options.max_bad, hint=hint)
        return pairs

    def _stored_report(self) -> PrepareReport | None:
        """Return the stored report if nothing has changed since, else None."""
        final, stored = self.final, rules.read_source(self.final)
        folder = locate.find_dataset_folder(self.declaration, self.root)
        if stored is None or folder is None or len(stored["bad"]) > self.options.max_bad:
            return None
        pairs = self._checked_pairs(folder)
        label_digest = rules.conversion_digest(self.declaration, folder, self.options)
        if stored["stamp"] != rules.sources_digest(label_digest, pairs):
            return None
        try:
            manifest = read_manifest(final)
            dataset = read_index(final)
            intact = all(sha256_of(final / name) == file for name, file in manifest.files.items())
        except (DataError, OSError):  # damaged: prepare it again
            return None
        if any(manifest.is_outdated(row) for row in manifest.rows):
            return None
        labels = [row.prepared for row in manifest.rows if row.prepared is not None]
        if not intact or not all(label.matches(final / label.path) for label in labels):
            return None
        lists = {key: stored[key] for key in rules.STORED_LISTS}
        reduced = reduced_images(folder, manifest.rows)
        return PrepareReport(dataset, unchanged=True, reduced=reduced, **lists)

    def _rebuild(self) -> PrepareReport:
        """Read new and changed files, and replace the prepared folder atomically."""
        declaration, options = self.declaration, self.options
        folder = locate.find_dataset_folder(declaration, self.root)
        self._refuse_other_set(folder)
        if folder is None:
            folder = locate.unpack_archives(declaration, self.root, self.on_unpack)
            _warn_if_incomplete(declaration, folder)
        locate.clear_leftovers(declaration, self.root)
        pairs = self._checked_pairs(folder)
        label_digest = rules.conversion_digest(declaration, folder, options)
        # before reading, so that later changes are detected
        stamp = rules.sources_digest(label_digest, pairs)
        with Workspace(self.final, folder, label_digest) as workspace:
            result = read_all(declaration, pairs, folder, workspace, options, self.on_progress)
            report = build_report(declaration, pairs, result, folder, self.final, options)
            reported = {key: getattr(report, key) for key in rules.STORED_LISTS}
            source = {"stamp": stamp, **reported, "rules": options.rules()}
            if not declaration.is_builtin:
                source[rules.DECLARED_IN] = str(declaration.path.resolve())
            package = declaration.label_package
            reader = None if package is None else LabelReader(declaration.label_format, *package)
            with disk_space(workspace.temporary_folder, lambda: DOCUMENTS * len(result.rows)):
                workspace.finish(report.dataset, result.rows, source, reader)
        report.dataset = read_index(self.final)
        return report

    def _refuse_other_set(self, folder: Path | None) -> None:
        """Refuse to replace the set of another YAML that has the same name."""
        declaration, final = self.declaration, self.final
        yaml, images = rules.owner_of(final)
        owner, path = yaml or images, declaration.path.resolve()
        if declaration.is_builtin or owner is None or yaml == path or _is_gone(owner):
            return
        # a copy of the YAML declares the same set if it finds the same images
        is_copy = yaml is None or _is_same_text(yaml, path)
        if is_copy and folder is not None and images == folder.resolve():
            return
        raise DataError(
            f"{declaration.path}: the name '{declaration.name}' belongs to the data set of "
            f"{owner}, prepared in {final}; choose another `name` in {declaration.path.name}, or "
            f"delete {final} if the other set is no longer needed"
        )


def _files_there(folder: Path, globs: Sequence[str]) -> str:
    """Return a line with the kinds of files that the folders of globs have; empty for none."""
    counts = Counter(
        path.suffix or "no suffix"
        for glob in globs
        for path in find_files(folder / static_prefix(glob), "**/*")
    )
    return f"  files there: {most_common_text(counts)}\n" if counts else ""


def _matching_hint(pairs: DatasetFiles) -> str:
    """Return how names that differ only in their endings match; empty if they do not."""
    images = [each.path for each in pairs.unpaired if each.code == "image-without-label"]
    labels = [each.path for each in pairs.unpaired if each.code == "label-without-image"]
    group = group_labels(images, labels) if images and labels else None
    if group is None:
        return ""
    endings = ", ".join(filter(None, (group.image_ending, group.label_ending)))
    return (
        f"names of images and labels differ in their endings: write `match: {{strip: [{endings}]}}`"
    )


def _is_gone(path: Path) -> bool:
    """Return whether there is no such path; one that another user hides is not gone."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _is_same_text(one: Path, other: Path) -> bool:
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError:
        return False


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
