"""Which images and videos `udaseg predict` was given, and where their masks go."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from udaseg.data import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from udaseg.errors import DataError, UsageError
from udaseg.recipe import printable

log = logging.getLogger(__name__)

_PATTERN = "*?["
_RECORDS = "videos"
_IN_COLORS = ("color", "overlay")


@dataclass(frozen=True)
class Found:
    """What the words on the command line mean.

    Attributes:
        images: Absolute paths of images, then of videos, sorted, each once.
        roots: The folders among the words; nothing may be written into them.
    """

    images: tuple[Path, ...]
    roots: tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """One image or video and its masks.

    Attributes:
        image: Its path.
        masks: The file of each kind of mask; of a video some are folders of frames.
        record: Of a video: what was written, itself written last.
    """

    image: Path
    masks: dict[str, Path]
    record: Path | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All that is written for it."""
        return (*self.masks.values(), *(() if self.record is None else (self.record,)))

    def in_frames(self, kind: str) -> bool:
        """Return whether a kind of mask of a video is a folder of frames."""
        return self.record is not None and self.masks[kind].suffix == FRAMES


FRAMES = ".frames"


def file_suffix(kind: str) -> str:
    """Return the suffix of a kind of mask."""
    return ".npy" if kind == "logits" else ".png"


def is_video(path: Path) -> bool:
    """Return whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_images(words: Sequence[str]) -> Found:
    """Return the images and videos that files, folders and patterns name.

    A word that exists is taken literally; only then `*`, `?`, `[…]` and `**` are a pattern. Folders
    are searched in any nesting, links to folders and hidden files left out, for the suffixes of
    images and videos in upper or lower case. A file that is named is always taken, to be tried.

    Raises:
        DataError: A word names nothing, or all words together name no image.
    """
    images: set[Path] = set()
    roots = []
    for word in words:
        matches = [Path(word)] if os.path.lexists(word) else sorted(_matches(word))
        if not matches:
            what = "no file matches" if any(sign in word for sign in _PATTERN) else "does not exist"
            raise DataError(
                f"{printable(word)}: {what}; give images, videos, folders of them, or patterns"
            )
        for match in matches:
            path = Path(os.path.abspath(match))  # noqa: PTH100  # links stay as they are named
            if path.is_dir():
                roots.append(path)
                images |= _images_below(path)
            else:
                images.add(path)
    if not images:
        shown = ", ".join(printable(word) for word in words)
        suffixes = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise DataError(f"{shown}: no images or videos there ({suffixes})")
    return Found(tuple(sorted(images, key=lambda path: (is_video(path), path))), tuple(roots))


def plan_masks(found: Found, out: Path, kinds: Sequence[str], *, video: str = "mp4") -> list[Job]:
    """Return where each image's masks go: `<out>/<kind>/<path of the image>.png`, logits `.npy`.

    The path is the one below the deepest folder that all inputs share, so two folders with equal
    names inside stay apart. `a.jpg` becomes `a.png`; where `a.png` lies beside it, both keep their
    suffix: `a.jpg.png` and `a.png.png`. Of a video `a.mov` the kinds in colour become the video
    `a.mp4`, all others, which a codec would change, the frames `a.mov.frames/000000.png` and so on.

    Args:
        found: The inputs.
        out: Folder of the masks.
        kinds: Of mask.
        video: Suffix of videos in colour, or `frames` for frames there too.

    Raises:
        UsageError: Something would be written into an input folder or over an input, or two
            images would get the same mask.
    """
    parents = [*(str(path.parent) for path in found.images), *map(str, found.roots)]
    base = Path(os.path.commonpath(parents))
    below = [image.relative_to(base) for image in found.images]
    shared = Counter((is_video(path), _folded(path.with_suffix(""))) for path in below)
    jobs = []
    for image, path in zip(found.images, below, strict=True):
        alone = shared[is_video(path), _folded(path.with_suffix(""))] == 1
        stem = path.stem if alone else path.name
        if not is_video(image):
            named = {kind: path.with_name(stem + file_suffix(kind)) for kind in kinds}
            jobs.append(Job(image, {kind: out / kind / name for kind, name in named.items()}))
            continue
        film, frames = f"{stem}.{video}", f"{path.name}{FRAMES}"
        names = {
            kind: film if video != "frames" and kind in _IN_COLORS else frames for kind in kinds
        }
        masks = {kind: out / kind / path.with_name(name) for kind, name in names.items()}
        jobs.append(Job(image, masks, out / _RECORDS / path.with_name(f"{path.name}.json")))
    _refuse_same(jobs)
    _refuse_inside(out, found.roots)
    _refuse_inputs(jobs)
    return jobs


def _images_below(folder: Path) -> set[Path]:
    images, others, links = set(), Counter[str](), 0
    for entry in _walk(folder):
        suffix = Path(entry.name).suffix.lower()
        if entry.is_symlink() and Path(entry.path).is_dir():
            links += 1
        elif suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
            images.add(Path(entry.path))
        else:
            others[suffix or "no suffix"] += 1
    if links:
        log.warning("%s: %d links to folders were not followed", printable(str(folder)), links)
    if others:
        listed = ", ".join(f"{printable(suffix)} ({n})" for suffix, n in others.most_common(5))
        log.warning(
            "%s: %d files are no images by their name and were left out: %s",
            *(printable(str(folder)), others.total(), listed),
        )
    return images


def _walk(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield every entry below `folder` that is no folder, and links to folders; nothing hidden."""
    try:
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(str(folder))}: cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield entry


def _matches(pattern: str) -> Iterator[Path]:
    """Yield what a pattern names; a part that exists as it is written is no pattern."""
    path = Path(pattern)
    start = Path(path.anchor) if path.anchor else Path()
    return _below(start, path.parts[1:] if path.anchor else path.parts)


def _below(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(base / part):
        yield from _below(base / part, rest)
    elif base.is_dir() and any(sign in part for sign in _PATTERN):
        if part == "**":
            yield from _below(base, rest)
        for entry in sorted(base.iterdir()):
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            if part == "**":
                if entry.is_dir() and not entry.is_symlink():
                    yield from _below(entry, parts)
                elif not rest and not entry.is_dir():
                    yield entry
            elif fnmatchcase(entry.name, part):
                yield from _below(entry, rest)


def _folded(path: Path) -> str:
    """Return a name as a file system that ignores case and accents' coding would see it."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _refuse_same(jobs: Iterable[Job]) -> None:
    seen: dict[str, Path] = {}
    for job in jobs:
        for mask in job.outputs:
            other = seen.setdefault(_folded(mask), job.image)
            if other is not job.image:
                raise UsageError(
                    f"{printable(str(job.image))} and {printable(str(other))} would both be "
                    f"written to {printable(str(mask))}; predict them into two --out folders"
                )


def _refuse_inside(out: Path, roots: Iterable[Path]) -> None:
    target = out.resolve()
    for root in roots:
        if target.is_relative_to(root.resolve()):
            raise UsageError(
                f"{printable(str(out))}: lies in the input folder {printable(str(root))}, whose "
                "next prediction would take the masks for images; choose another --out"
            )


def _refuse_inputs(jobs: Iterable[Job]) -> None:
    """Refuse outputs that are inputs, under another name, case, or link."""
    jobs = list(jobs)
    # realpath, because Path.resolve raises on a link to itself
    paths = {os.path.realpath(job.image) for job in jobs}
    files = {_identity(job.image) for job in jobs} - {None}
    for job in jobs:
        for mask in job.outputs:
            if os.path.realpath(mask) in paths or _identity(mask) in files:
                raise UsageError(
                    f"{printable(str(mask))}: is an input too and would be overwritten; "
                    "choose another --out"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
