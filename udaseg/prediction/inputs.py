"""Resolve the inputs of `predict`: files, folders and patterns."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from udaseg.data.files.folders import refuse_run, suffixes_text
from udaseg.data.files.images import IMAGE_SUFFIXES, image_header
from udaseg.data.files.video import VIDEO_SUFFIXES
from udaseg.errors import DataError

log = logging.getLogger(__name__)
_WILDCARDS = "*?["
_REMEDIES = {
    ".gif": "use its frames as images",
    ".pdf": "save its pages as images",
    **dict.fromkeys(
        (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"), "unpack it first"
    ),
}


@dataclass(frozen=True)
class Inputs:
    """The images and videos that `predict` is given.

    Attributes:
        images: Absolute paths of images and videos in the order of the inputs, those of a folder or
            pattern sorted; without duplicates. They are texts, which take less memory than `Path`.
        folders: The input folders; nothing may be written into them.
    """

    images: tuple[str, ...]
    folders: tuple[Path, ...]


def is_video(path: str) -> bool:
    """Return whether a file name has a video suffix."""
    return _suffix(path) in VIDEO_SUFFIXES


def sort_key(path: str) -> str:
    """Return what sorts paths by their folders and names, as `Path` is sorted."""
    return path.replace(os.sep, "\0")


def refuse_unsupported(path: Path) -> None:
    """Raise a `DataError` that says what to do with a file of a suffix that is not read."""
    remedy = _REMEDIES.get(path.suffix.lower())
    if remedy is not None:
        raise DataError(f"{path}: not an image; {remedy}")


def resolve_inputs(arguments: Sequence[str]) -> Inputs:
    """Return the images and videos that files, folders and patterns name.

    An input that exists is taken literally; otherwise `*`, `?`, `[…]` and `**` form a pattern.
    Folders are searched recursively for the suffixes of images and videos, in upper or lower case;
    links to folders and hidden files are skipped. A file that is named explicitly is always
    included.
    """
    images: dict[str, None] = {}  # a set that keeps the order
    folders = []
    for argument in arguments:
        exists = os.path.lexists(argument)
        matches = [Path(argument)] if exists else sorted(_match_pattern(Path(argument)))
        if not matches:
            problem = "no file matches" if _is_pattern(argument) else "does not exist"
            raise DataError(f"{argument}: {problem}; give images, videos, folders or patterns")
        for match in matches:
            path = os.path.abspath(match)  # does not resolve links
            if Path(path).is_dir():
                refuse_run(Path(path))
                folders.append(Path(path))
                images |= dict.fromkeys(sorted(_images_below(path), key=sort_key))
            else:
                images[path] = None
    if not images:
        listed = ", ".join(arguments)
        suffixes = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise DataError(f"{listed}: contains no images or videos ({suffixes})")
    return Inputs(tuple(images), tuple(folders))


def refuse_other_files(images: Iterable[str]) -> None:
    """Refuse inputs none of which is an image or a video, as their names and first bytes say.

    Raises:
        DataError: What the first one is.
    """
    others = []
    for path in images:
        if _suffix(path) in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            return
        try:
            image_header(Path(path))
        except DataError:
            others.append(Path(path))
        else:
            return
    if others:
        refuse_unsupported(others[0])
        raise DataError(f"{others[0]}: is not an image or a video")


def _images_below(folder: str) -> list[str]:
    """Return the images and videos below a folder; log what is skipped, except hidden entries."""
    images, others, links = [], Counter[str](), 0
    for parent, folders, files in os.walk(folder, onerror=_refuse_unlistable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += sum(Path(parent, name).is_symlink() for name in folders)
        for name in files:
            suffix = _suffix(name)
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
                images.append(os.path.join(parent, name))
            else:
                others[suffix or "no suffix"] += 1
    if links:
        log.warning("%s: %d links to folders were not followed", folder, links)
    if others:
        log.warning(
            "%s: skipped %d files with unsupported extensions: %s",
            folder,
            others.total(),
            suffixes_text(others),
        )
    return images


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _refuse_unlistable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in _WILDCARDS)


def _match_pattern(pattern: Path) -> Iterator[Path]:
    """Yield the paths that match a pattern; a part that exists literally is not a pattern."""
    if pattern.anchor:
        return _expand(Path(pattern.anchor), pattern.parts[1:])
    return _expand(Path(), pattern.parts)


def _expand(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield base
        return
    part, remaining = parts[0], parts[1:]
    if os.path.lexists(base / part):
        yield from _expand(base / part, remaining)
    elif base.is_dir() and _is_pattern(part):
        if part == "**":
            yield from _expand(base, remaining)
        for entry in sorted(base.iterdir()):
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            if part == "**":
                if entry.is_dir() and not entry.is_symlink():
                    yield from _expand(entry, parts)
                elif not remaining and not entry.is_dir():
                    yield entry
            elif fnmatchcase(entry.name, part):
                yield from _expand(entry, remaining)
