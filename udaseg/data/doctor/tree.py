"""What names and links say, before a file is opened: odd names, loops, what no split uses."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.subject import Subject
from udaseg.data.images import IMAGE_SUFFIXES

_LONGEST = 200  # bytes; file systems end at 255, and masks get a suffix more
_RESERVED = '<>:"|?*\\'


def note_tree(subject: Subject, accounted: Collection[Path], findings: Findings) -> set[Path]:
    """Note what names and links of a set say, without opening a file.

    Args:
        subject: The set.
        accounted: Files that are in a split or noted already.
        findings: Where to note.

    Returns:
        Folders that have an image's name.
    """
    role = subject.role
    files = dict.fromkeys(
        path for item in subject.items for path in (item.image, item.label) if path is not None
    )
    own = [path for path in files if path.is_relative_to(subject.folder)]
    tree = Path(os.path.realpath(subject.folder))
    for path in own:
        why = odd_name(path.name)
        if why:
            findings.add("odd-name", role, path, why)
        _note_link(path, tree, role, findings)
    _note_collisions(own, role, findings)
    seen: set[tuple[int, int]] = set()
    posing: set[Path] = set()
    known = {*files, *accounted}
    for start in subject.walked:
        for folder in _above(start, subject.folder):
            _note_link(folder, tree, role, findings)
        for path in _entries(start, tree, role, findings, seen):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            if path.is_dir():
                _note_link(path, tree, role, findings)
                if is_image:
                    findings.add("not-a-file", role, path, "a folder")
                    posing.add(path)
            elif is_image and path not in known and _is_own(subject):
                findings.add("unused-file", role, path)
            elif not is_image and subject.kind == "folder":
                findings.add("other-file", role, path)
    return posing


def odd_name(name: str) -> str:
    """Return why other tools would stumble over a file name; nothing if they would not."""
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        return "not UTF-8"
    if any(unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") for sign in name):
        return "control or invisible characters"
    if name.startswith("-"):
        return "begins like an option"
    if name != name.strip() or Path(name).stem != Path(name).stem.strip():
        return "begins or ends with a space"
    if len(name.encode()) > _LONGEST:
        return f"longer than {_LONGEST} bytes"
    marks = sorted(set(name) & set(_RESERVED))
    return f"has {' '.join(marks)}" if marks else ""


def _note_link(path: Path, tree: Path, role: str, findings: Findings) -> None:
    if not path.is_symlink() or not path.exists():  # what leads nowhere is named when it is read
        return
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(tree):
        findings.add("link-outside", role, path, f"to {real}")
    elif real.is_dir() and Path(os.path.realpath(path.parent)).is_relative_to(real):
        findings.add("link-circle", role, path, f"to {real}")


def _note_collisions(paths: Iterable[Path], role: str, findings: Findings) -> None:
    first: dict[tuple[Path, str], Path] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path.name).casefold()
        other = first.setdefault((path.parent, folded), path)
        if other != path:
            findings.add("name-collision", role, path, f"and {other.name}")


def _above(start: Path, folder: Path) -> list[Path]:
    """Return the folders from `folder`, which is left out, down to `start`."""
    parts = start.relative_to(folder).parts
    return [folder.joinpath(*parts[: number + 1]) for number in range(len(parts))]


def _entries(
    folder: Path, tree: Path, role: str, findings: Findings, seen: set[tuple[int, int]]
) -> Iterator[Path]:
    """Yield every entry below a folder, nothing hidden, each folder's once.

    A link to a folder is followed when that lies outside; inside, it is met at its own place.
    """
    try:
        facts = folder.stat()
        with os.scandir(folder) as opened:
            names = sorted(entry.name for entry in opened if not entry.name.startswith("."))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            findings.add("unreadable", role, folder, error.strerror or "")
        return
    if (facts.st_dev, facts.st_ino) in seen:
        return
    seen.add((facts.st_dev, facts.st_ino))
    for name in names:
        path = folder / name
        yield path
        inside = path.is_symlink() and Path(os.path.realpath(path)).is_relative_to(tree)
        if path.is_dir() and not inside:
            yield from _entries(path, tree, role, findings, seen)


def _is_own(subject: Subject) -> bool:
    """Return whether a user wrote the globs: a published set has files that no one uses."""
    declaration = subject.declaration
    return declaration is not None and declaration.root is not None and declaration.base is None
