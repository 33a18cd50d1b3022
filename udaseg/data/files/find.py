"""Find files by a glob pattern: same order on every system, no loops, no hidden files."""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the files below `root` that match a pattern, sorted.

    `**` matches any number of folders. A part that exists literally also matches. Suffixes match in
    any case. Hidden files are skipped, including the `._` files in some archives. Links to folders
    are followed; a folder that is reached twice is read once.
    """
    parts = _parts(pattern)
    if not parts:
        return []
    if parts[-1] == "**":
        parts = (*parts, "*")
    return sorted(set(_walk(root, parts)), key=Path.as_posix)


def static_prefix(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard, POSIX style."""
    folders = _parts(pattern)[:-1]
    return "/".join(itertools.takewhile(lambda part: not set(part) & set("*?["), folders))


def wildcard_text(pattern: str, path: PurePosixPath) -> str:
    """Return what the wildcards of a pattern stand for in a path that it matches, joined by `/`.

    The suffix is left out: `*/images/*.png` and `Urban/images/0.png` give `Urban/0`.
    """
    *folders, name = _parts(pattern)
    expression = "".join(
        "((?:[^/]+/)*)" if part == "**" else f"{_part_expression(part)}/" for part in folders
    )
    expression += _part_expression("*" if name == "**" else PurePosixPath(name).stem)
    match = re.fullmatch(expression, path.with_suffix("").as_posix(), re.IGNORECASE)
    texts = () if match is None else match.groups()
    return "/".join(text.strip("/") for text in texts if text.strip("/"))


def _part_expression(part: str) -> str:
    """Return a regular expression for a part of a pattern, with a group for each wildcard."""
    pieces = re.split(r"(\*|\?|\[[^\]]+\])", part)
    for index in range(1, len(pieces), 2):
        wildcard = pieces[index]
        inside = {"*": "[^/]*", "?": "[^/]"}.get(wildcard, wildcard.replace("[!", "[^"))
        pieces[index] = f"({inside})"
    pieces[::2] = map(re.escape, pieces[::2])
    return "".join(pieces)


def _parts(pattern: str) -> tuple[str, ...]:
    return PurePosixPath(pattern.replace("\\", "/")).parts


def _walk(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below `root` that match `parts`, at any depth."""
    seen: set[tuple[int, int, int]] = set()  # visited folders, with the number of remaining parts
    waiting = [(root, parts)]
    while waiting:
        folder, (first, *rest) = waiting.pop()
        try:
            info = folder.stat()
            with os.scandir(folder) as opened:
                entries = [entry for entry in opened if not entry.name.startswith(".")]
        except OSError:
            continue
        state = (info.st_dev, info.st_ino, len(rest))
        if state in seen:
            continue
        seen.add(state)
        deep, remaining = first == "**", tuple(rest)
        # the last in this list comes first: the same folder, then the others by name
        for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
            path, is_folder = folder / entry.name, _is_folder(entry)
            if is_folder and deep:
                waiting.append((path, (first, *remaining)))
            elif is_folder and remaining and _matches(entry.name, first):
                waiting.append((path, remaining))
            elif not is_folder and not deep and not remaining and _matches(entry.name, first):
                yield path
        if deep:
            waiting.append((folder, remaining))


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
