"""Find files by a glob pattern: same order on every system, no loops, no hidden files."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the files below `root` that match a pattern, sorted.

    `**` matches any number of folders. A part that exists literally also matches. Suffixes match in
    any case. Hidden files are skipped, including the `._` files in some archives. Links to folders
    are followed; a folder that is reached twice is read once.
    """
    parts = PurePosixPath(pattern.replace("\\", "/")).parts
    if not parts:
        return []
    if parts[-1] == "**":
        parts = (*parts, "*")
    return sorted(set(_walk(root, parts, set())), key=lambda path: path.as_posix())


def static_prefix(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard, POSIX style."""
    folders = []
    for part in PurePosixPath(pattern.replace("\\", "/")).parts[:-1]:
        if any(wildcard in part for wildcard in "*?["):
            break
        folders.append(part)
    return "/".join(folders)


def _walk(folder: Path, parts: tuple[str, ...], seen: set[tuple[int, int, int]]) -> Iterator[Path]:
    """Yield the files below `folder` that match `parts`.

    `seen` holds the visited folders, each with the number of remaining parts.
    """
    try:
        info = folder.stat()
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError:
        return
    state = (info.st_dev, info.st_ino, len(parts))
    if state in seen:
        return
    seen.add(state)
    first, remaining = parts[0], parts[1:]
    if first == "**":
        yield from _walk(folder, remaining, seen)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        is_folder = _is_folder(entry)
        if first == "**":
            if is_folder:
                yield from _walk(folder / entry.name, parts, seen)
        elif _matches(entry.name, first):
            if remaining and is_folder:
                yield from _walk(folder / entry.name, remaining, seen)
            elif not remaining and not is_folder:
                yield folder / entry.name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link; reading it raises an error that names it
        return False


def _matches(name: str, pattern: str) -> bool:
    if name == pattern or fnmatch.fnmatchcase(name, pattern):
        return True
    stem, dot, suffix = name.rpartition(".")
    return bool(dot) and fnmatch.fnmatchcase(f"{stem}.{suffix.lower()}", pattern)
