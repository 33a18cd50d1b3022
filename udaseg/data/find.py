"""Finding files by a glob pattern: same order everywhere, no loops, no hidden files."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def find(root: Path, pattern: str) -> list[Path]:
    """Return the files below `root` that match, sorted.

    `**` matches any number of folders; suffixes match in any case; hidden files, and the `._`
    files that some archives bring, are left out; a folder that is reached twice is read once.
    """
    parts = list(PurePosixPath(pattern.replace("\\", "/")).parts)
    return sorted(set(_walk(root, parts, frozenset())), key=lambda path: path.as_posix())


def static_prefix(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard, POSIX style."""
    fixed = []
    for part in PurePosixPath(pattern.replace("\\", "/")).parts[:-1]:
        if any(sign in part for sign in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def _walk(folder: Path, parts: list[str], above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        facts = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    above = above | {here}
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _walk_entries(folder, rest, above)
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                yield from _walk(folder / entry.name, parts, above)
        return
    for entry in entries:
        if entry.name.startswith(".") or not _matches(entry.name, head):
            continue
        if rest:
            if entry.is_dir():
                yield from _walk(folder / entry.name, rest, above)
        elif not entry.is_dir():
            yield folder / entry.name


def _walk_entries(
    folder: Path, rest: list[str], above: frozenset[tuple[int, int]]
) -> Iterator[Path]:
    # the same folder once more, for the part behind `**`; it is no loop
    if rest:
        facts = folder.stat()
        yield from _walk(folder, rest, above - {(facts.st_dev, facts.st_ino)})


def _matches(name: str, pattern: str) -> bool:
    if name == pattern or fnmatch.fnmatchcase(name, pattern):
        return True
    stem, dot, suffix = name.rpartition(".")
    return bool(dot) and fnmatch.fnmatchcase(f"{stem}.{suffix.lower()}", pattern)
