"""Finding files by a glob pattern: same order everywhere, no loops, no hidden files."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def find(root: Path, pattern: str) -> list[Path]:
    """Return the files below `root` that match, sorted.

    `**` matches any number of folders; a part that exists as it is written is no pattern; suffixes
    match in any case; hidden files, and the `._` files that some archives bring, are left out;
    links to folders are followed, and a folder that is reached twice is read once.
    """
    parts = PurePosixPath(pattern.replace("\\", "/")).parts
    if not parts:
        return []
    if parts[-1] == "**":
        parts = (*parts, "*")
    return sorted(set(_walk(root, parts, set())), key=lambda path: path.as_posix())


def static_prefix(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard, POSIX style."""
    fixed = []
    for part in PurePosixPath(pattern.replace("\\", "/")).parts[:-1]:
        if any(sign in part for sign in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def _walk(folder: Path, parts: tuple[str, ...], seen: set[tuple[int, int, int]]) -> Iterator[Path]:
    """Yield what matches `parts` below `folder`; `seen` are folders with the parts left there."""
    try:
        facts = folder.stat()
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError:
        return
    state = (facts.st_dev, facts.st_ino, len(parts))
    if state in seen:
        return
    seen.add(state)
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _walk(folder, rest, seen)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        inside = _is_folder(entry)
        if head == "**":
            if inside:
                yield from _walk(folder / entry.name, parts, seen)
        elif _matches(entry.name, head):
            if rest and inside:
                yield from _walk(folder / entry.name, rest, seen)
            elif not rest and not inside:
                yield folder / entry.name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle; it is named when it is read
        return False


def _matches(name: str, pattern: str) -> bool:
    if name == pattern or fnmatch.fnmatchcase(name, pattern):
        return True
    stem, dot, suffix = name.rpartition(".")
    return bool(dot) and fnmatch.fnmatchcase(f"{stem}.{suffix.lower()}", pattern)
