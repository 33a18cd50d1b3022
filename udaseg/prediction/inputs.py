"""Resolve the inputs of `predict`, and plan the paths of its masks."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.data.files.video import VIDEO_SUFFIXES
from udaseg.errors import DataError, UsageError
from udaseg.inference.kinds import MaskKind

log = logging.getLogger(__name__)
_WILDCARDS = "*?["
_RECORD_FOLDER = "videos"
_COLOR_KINDS = ("color", "overlay")


@dataclass(frozen=True)
class Inputs:
    """The images and videos that `predict` is given.

    Attributes:
        images: Absolute paths of images and videos in the order of the inputs, those of a folder or
            pattern sorted; without duplicates.
        folders: The input folders; nothing may be written into them.
    """

    images: tuple[Path, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """One image or video and its masks.

    Attributes:
        image: Its path.
        masks: File of each kind of mask; for some kinds of a video, a folder of frames.
        record: For a video, the list of outputs written; it is written last.
    """

    image: Path
    masks: dict[MaskKind, Path]
    record: Path | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All paths that are written for this input."""
        return (*self.masks.values(), *(() if self.record is None else (self.record,)))

    def writes_frames(self, kind: MaskKind) -> bool:
        """Return whether this kind of mask is written as a folder of video frames."""
        return self.record is not None and self.masks[kind].suffix == FRAMES_SUFFIX


FRAMES_SUFFIX = ".frames"


def file_suffix(kind: MaskKind) -> str:
    """Return the file suffix of a kind of mask."""
    return ".npy" if kind == "logits" else ".png"


def is_video(path: Path) -> bool:
    """Return whether a file name has a video suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def resolve_inputs(arguments: Sequence[str]) -> Inputs:
    """Return the images and videos that files, folders and patterns name.

    An input that exists is taken literally; otherwise `*`, `?`, `[…]` and `**` form a pattern.
    Folders are searched recursively for the suffixes of images and videos, in upper or lower case;
    links to folders and hidden files are skipped. A file that is named explicitly is always
    included.

    Raises:
        DataError: An input does not exist, or no input contains an image.
    """
    images: dict[Path, None] = {}  # a set that keeps the order
    roots = []
    for argument in arguments:
        matches = (
            [Path(argument)] if os.path.lexists(argument) else sorted(_match_pattern(argument))
        )
        if not matches:
            problem = (
                "no file matches"
                if any(sign in argument for sign in _WILDCARDS)
                else "does not exist"
            )
            raise DataError(f"{argument}: {problem}; give images, videos, folders or patterns")
        for match in matches:
            path = Path(os.path.abspath(match))  # noqa: PTH100  # does not resolve links
            if path.is_dir():
                roots.append(path)
                images |= dict.fromkeys(sorted(_images_below(path)))
            else:
                images[path] = None
    if not images:
        listed = ", ".join(arguments)
        suffixes = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise DataError(f"{listed}: contains no images or videos ({suffixes})")
    return Inputs(tuple(images), tuple(roots))


def plan_outputs(
    inputs: Inputs, out: Path, kinds: Sequence[MaskKind], *, video: str = "mp4"
) -> list[Job]:
    """Return one job per input: `<out>/<kind>/<path of the image>.png`, logits as `.npy`.

    The jobs are those of the images, then those of the videos, each sorted.

    The path is relative to the deepest folder shared by all inputs, so folders of equal names stay
    apart. `a.jpg` becomes `a.png`; if `a.png` is another input next to it, both keep their suffix:
    `a.jpg.png` and `a.png.png`. For a video `a.mov`, colour kinds become the video `a.mp4`; all
    other kinds would be changed by a codec and become frames `a.mov.frames/000000.png` and so on.

    Args:
        inputs: The inputs.
        out: Folder of the masks.
        kinds: Kinds of mask.
        video: Suffix of colour videos, or `frames` to write frames there too.

    Raises:
        UsageError: An output lies in an input folder or would overwrite an input, or two inputs map
            to one output.
    """
    parents = [*(str(path.parent) for path in inputs.images), *map(str, inputs.folders)]
    base = Path(os.path.commonpath(parents))
    images = sorted(inputs.images, key=lambda path: (is_video(path), path))
    relative_paths = [image.relative_to(base) for image in images]
    stem_counts = Counter(
        (is_video(path), _fold_case(path.with_suffix(""))) for path in relative_paths
    )
    jobs = []
    for image, path in zip(images, relative_paths, strict=True):
        is_unique = stem_counts[is_video(path), _fold_case(path.with_suffix(""))] == 1
        stem = path.stem if is_unique else path.name
        if not is_video(image):
            image_names = {kind: path.with_name(stem + file_suffix(kind)) for kind in kinds}
            jobs.append(Job(image, {kind: out / kind / name for kind, name in image_names.items()}))
            continue
        video_name, frames_name = f"{stem}.{video}", f"{path.name}{FRAMES_SUFFIX}"
        names = {
            kind: video_name if video != "frames" and kind in _COLOR_KINDS else frames_name
            for kind in kinds
        }
        masks = {kind: out / kind / path.with_name(name) for kind, name in names.items()}
        jobs.append(Job(image, masks, out / _RECORD_FOLDER / path.with_name(f"{path.name}.json")))
    _refuse_duplicate_outputs(jobs)
    _refuse_output_in_inputs(out, inputs.folders)
    _refuse_overwriting_inputs(jobs)
    return jobs


def _images_below(folder: Path) -> set[Path]:
    images, others, links = set(), Counter[str](), 0
    for entry in _list_files(folder):
        suffix = Path(entry.name).suffix.lower()
        if entry.is_symlink() and Path(entry.path).is_dir():
            links += 1
        elif suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
            images.add(Path(entry.path))
        else:
            others[suffix or "no suffix"] += 1
    if links:
        log.warning("%s: %d links to folders were not followed", folder, links)
    if others:
        listed = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
        log.warning(
            "%s: skipped %d files with unsupported extensions: %s",
            folder,
            others.total(),
            listed,
        )
    return images


def _list_files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield all files below `folder`, and links to folders; hidden entries are skipped."""
    try:
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _list_files(Path(entry.path))
        else:
            yield entry


def _match_pattern(pattern: str) -> Iterator[Path]:
    """Yield the paths that match a pattern; a part that exists literally is not a pattern."""
    path = Path(pattern)
    start = Path(path.anchor) if path.anchor else Path()
    return _expand(start, path.parts[1:] if path.anchor else path.parts)


def _expand(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield base
        return
    part, remaining = parts[0], parts[1:]
    if os.path.lexists(base / part):
        yield from _expand(base / part, remaining)
    elif base.is_dir() and any(sign in part for sign in _WILDCARDS):
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


def _fold_case(path: Path) -> str:
    """Return a path folded as on a file system that ignores case and Unicode normal form."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _refuse_duplicate_outputs(jobs: Iterable[Job]) -> None:
    image_by_output: dict[str, Path] = {}
    for job in jobs:
        for mask in job.outputs:
            other = image_by_output.setdefault(_fold_case(mask), job.image)
            if other is not job.image:
                raise UsageError(
                    f"{job.image} and {other} would both be "
                    f"written to {mask}; predict them into separate --out folders"
                )


def _refuse_output_in_inputs(out: Path, roots: Iterable[Path]) -> None:
    target = out.resolve()
    for root in roots:
        if target.is_relative_to(root.resolve()):
            raise UsageError(
                f"{out}: lies in the input folder {root}, so the "
                "next prediction would read the masks as images; choose another --out"
            )


def _refuse_overwriting_inputs(jobs: Iterable[Job]) -> None:
    """Refuse outputs that are inputs, even under another name, case or link."""
    jobs = list(jobs)
    # realpath, because Path.resolve raises on a link to itself
    paths = {os.path.realpath(job.image) for job in jobs}
    files = {_file_identity(job.image) for job in jobs} - {None}
    for job in jobs:
        for mask in job.outputs:
            if os.path.realpath(mask) in paths or _file_identity(mask) in files:
                raise UsageError(
                    f"{mask}: is also an input and would be overwritten; choose another --out"
                )


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
