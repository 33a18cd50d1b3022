"""Compare every file of prepared datasets with their manifests."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.files.parallel import map_in_threads
from udaseg.data.prepare.locate import prepared_folder
from udaseg.data.prepare.manifest import Manifest, read_manifest
from udaseg.data.prepare.prepare import find_declaration
from udaseg.data.prepare.report import Faults
from udaseg.data.prepare.rules import Names, expand_names
from udaseg.display.progress import LazyProgress
from udaseg.errors import DataError
from udaseg.files import sha256_of
from udaseg.plugins import is_installed

_MISSING = "gone"


@dataclass
class DataVerification:
    """The result of comparing a prepared data set with its manifest.

    Attributes:
        argument: The name or YAML by which it was verified.
        folder: The prepared folder.
        files: Number of files in the manifest.
        changed: Files with different content and unreadable files, each with the problem.
        missing: Files that no longer exist.
        missing_package: The package that read the labels, if it is no longer installed. The
            prepared labels do not need it, but new or changed ones do.
        seconds: Wall time.
    """

    name: str
    argument: str
    folder: Path
    files: int
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_package: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no file is changed or missing."""
        return not (self.changed or self.missing)


def verify_data(
    names: Names, *, root: str | os.PathLike[str] = "data", workers: int = -1
) -> list[DataVerification]:
    """Compare every file of prepared data sets with their manifests; write nothing.

    A changed file is a result, not an error.

    Args:
        names: Names of prepared or built-in data sets, or dataset YAMLs, or one of them.
        root: Folder of prepared data sets.
        workers: Threads that read; -1 uses one per core.

    Raises:
        SomeDataFailed: Data sets are not prepared, or their manifests are damaged, a `DataError`:
            the message lists all of them, `finished` has the results of the others.

    Example:
        (result,) = udaseg.verify_data("gta5")
        result.ok, result.changed, result.missing
    """
    faults, results, root = Faults(), [], Path(root)
    for name in expand_names(names):
        with faults.collected(), LazyProgress(f"verify {Path(name).stem}", "files") as progress:
            result = verify_dataset(name, root=root, workers=workers, on_progress=progress)
            results.append(result)
    faults.raise_if_any(results)
    return results


def verify_dataset(
    name: str,
    *,
    root: Path,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataVerification:
    """Compare every file of one prepared dataset with its manifest; see `verify_data`."""
    started = time.monotonic()
    # the name of a prepared dataset needs no YAML
    folder = prepared_folder(name, root) or prepared_folder(find_declaration(name, root).name, root)
    if folder is None:
        raise DataError(f"{name}: not prepared below {root}; run `udaseg prepare {name}`")
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        raise DataError(f"{error}; run `udaseg prepare {name}` to prepare it again") from error
    jobs = list(_expected_files(folder, manifest).items())
    report = DataVerification(folder.name, name, folder, len(jobs))
    reader = manifest.label_reader
    if reader is not None and not is_installed(reader.package):
        report.missing_package = reader.package
    for (path, _), fault in map_in_threads(_check_file, jobs, workers, on_progress):
        if fault == _MISSING:
            report.missing.append(str(path))
        elif fault is not None:
            report.changed.append(f"{path}: {fault}")
    report.seconds = time.monotonic() - started
    return report


def _expected_files(folder: Path, manifest: Manifest) -> dict[Path, tuple[int | None, str]]:
    """Return the expected size, if known, and SHA-256 of each file in a manifest."""
    expected: dict[Path, tuple[int | None, str]] = {
        folder / name: (None, digest) for name, digest in manifest.files.items()
    }
    for row in manifest.rows:
        for file in (row.image, row.label, row.prepared):
            if file is not None:
                base = folder if file is row.prepared else manifest.image_root
                expected[base / file.path] = (file.size, file.sha256)
    return expected


def _check_file(job: tuple[Path, tuple[int | None, str]]) -> str | None:
    """Return the problem with a file, or None."""
    path, (size, digest) = job
    try:
        if not path.is_file():  # reading a pipe would never end
            return _MISSING if not path.exists() else "is no longer a regular file"
        actual = path.stat().st_size
        if size is not None and actual != size:
            return f"has {actual:,} bytes, not {size:,}"
        if sha256_of(path) != digest:
            return "has different content"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
