"""Findings about names and links, without opening files: odd names, loops, unused files."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.subject import Subject
from udaseg.data.files.images import IMAGE_SUFFIXES

_MAX_NAME_BYTES = 200  # bytes; file systems allow 255, and masks get an additional suffix
_RESERVED_CHARACTERS = '<>:"|?*\\'


def add_name_findings(
    subject: Subject, accounted: Collection[Path], findings: Findings
) -> set[Path]:
    """Add findings about the names and links of a data set, without opening a file.

    Args:
        subject: The data set.
        accounted: Files that are in a split or already have a finding.
        findings: The findings are added here.

    Returns:
        Folders that are named like images.
    """
    role, declaration = subject.role, subject.declaration
    files = dict.fromkeys(
        path for item in subject.items for path in (item.image, item.label) if path is not None
    )
    paths = [path for path in files if path.is_relative_to(subject.folder)]
    tree = Path(os.path.realpath(subject.folder))
    for path in paths:
        problem = name_problem(path.name)
        if problem:
            findings.add("odd-name", role, path, problem)
        _add_link_findings(path, tree, role, findings)
    _add_collision_findings(paths, role, findings)
    # published datasets have files that are never used
    is_user_defined = declaration is not None and declaration.root and declaration.base is None
    visited: set[tuple[int, int]] = set()
    folders_named_as_images: set[Path] = set()
    known = {*files, *accounted}
    for start in subject.checked_folders:
        parents = [top for top in (start, *start.parents) if subject.folder in top.parents]
        for folder in reversed(parents):
            _add_link_findings(folder, tree, role, findings)
        for path in _walk(start, tree, role, findings, visited):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            if path.is_dir():
                _add_link_findings(path, tree, role, findings)
                if is_image:
                    findings.add("not-a-file", role, path, "a folder")
                    folders_named_as_images.add(path)
            elif is_image and path not in known and is_user_defined:
                findings.add("unused-file", role, path)
            elif not is_image and subject.kind == "folder":
                findings.add("other-file", role, path)
    return folders_named_as_images


def name_problem(name: str) -> str:
    """Return why a file name causes problems in other tools; empty if it causes none."""
    if any("\ud800" <= char <= "\udfff" for char in name):
        return "not UTF-8"
    if any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") for char in name):
        return "control or invisible characters"
    if name.startswith("-"):
        return "begins like an option"
    if name != name.strip() or Path(name).stem != Path(name).stem.strip():
        return "begins or ends with a space"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"longer than {_MAX_NAME_BYTES} bytes"
    reserved = sorted(set(name) & set(_RESERVED_CHARACTERS))
    return f"has {' '.join(reserved)}" if reserved else ""


def _add_link_findings(path: Path, tree: Path, role: str, findings: Findings) -> None:
    if not path.is_symlink() or not path.exists():  # a broken link is reported when it is read
        return
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(tree):
        findings.add("link-outside", role, path, f"to {real}")
    elif real.is_dir() and Path(os.path.realpath(path.parent)).is_relative_to(real):
        findings.add("link-circle", role, path, f"to {real}")


def _add_collision_findings(paths: Iterable[Path], role: str, findings: Findings) -> None:
    first: dict[tuple[Path, str], Path] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path.name).casefold()
        other = first.setdefault((path.parent, folded), path)
        if other != path:
            findings.add("name-collision", role, path, f"and {other.name}")


def _walk(
    folder: Path, tree: Path, role: str, findings: Findings, visited: set[tuple[int, int]]
) -> Iterator[Path]:
    """Yield every entry below a folder except hidden ones, and the entries of each folder once.

    A link to a folder is followed if that is outside; a folder inside is visited at its own path.
    """
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            findings.add("unreadable", role, folder, error.strerror or "")
        return
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    for name in names:
        path = folder / name
        yield path
        is_inside = path.is_symlink() and Path(os.path.realpath(path)).is_relative_to(tree)
        if path.is_dir() and not is_inside:
            yield from _walk(path, tree, role, findings, visited)
