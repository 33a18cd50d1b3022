"""Before `udaseg predict` begins: its run, what its paths may not be, and masks that exist."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from udaseg.commands.inputs import Job
from udaseg.errors import EnvironmentFault, UsageError
from udaseg.recipe import printable

log = logging.getLogger(__name__)

ALSO = "also_there"
"""Key of the facts of other networks whose masks lie in the same folder."""

KINDS = ("color", "ids", "label-ids", "overlay", "confidence", "logits")
TEMPORARY = ".video-"
_LEFT_OVER = re.compile(r"\.[a-z0-9_]{8}\.tmp|\.video-[a-z0-9_]{8}")
_FRAME = re.compile(r"[0-9]{6,}\.(png|npy)")
_INSTEAD = {
    "give its frames": (".gif",),
    "save its pages as images": (".pdf",),
    "unpack it first": (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"),
}


def newest_finished_run(folder: Path) -> Path:
    """Return the run below `folder` whose training ended last.

    Raises:
        UsageError: There is none.
    """
    finished = []
    for status in [*folder.glob("*/status.json"), *folder.glob("*/*/status.json")]:
        try:
            document = json.loads(status.read_text(encoding="utf-8"))
            if document["state"] == "done":
                finished.append((float(document["unix_time"]), status.parent))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: cannot be read; this run is passed over", status)
    if not finished:
        raise UsageError(
            f"{folder}/: no finished run there; name one with --checkpoint RUN, "
            "or make one with `udaseg adapt` or `udaseg demo`"
        )
    return max(finished)[1]


def not_an_image(path: Path) -> str | None:
    """Return why a file of this suffix is not even tried, and what to give instead."""
    suffix = path.suffix.lower()
    for instead, suffixes in _INSTEAD.items():
        if suffix in suffixes:
            return f"{path}: not an image; {instead}"
    return None


def refuse_conflicts(jobs: Sequence[Job], out: Path) -> None:
    """Refuse inputs inside `out`, and a mask where another mask needs a folder.

    Raises:
        UsageError: Names one such path; nothing was written.
    """
    # realpath, because Path.resolve raises on a link to itself
    target = Path(os.path.realpath(out))
    for job in jobs:
        if Path(os.path.realpath(job.image)).is_relative_to(target):
            raise UsageError(
                f"{printable(str(job.image))}: is an input inside the output folder "
                f"{printable(str(out))}; choose another --out"
            )
    masks = {mask: job.image for job in jobs for mask in job.outputs}
    for mask, image in masks.items():
        for folder in mask.parents:
            if folder in masks:
                raise UsageError(
                    f"{printable(str(folder))}: would be the mask of "
                    f"{printable(str(masks[folder]))} and a folder for that of "
                    f"{printable(str(image))}; predict them into two --out folders"
                )


def refuse_existing(jobs: Iterable[Job], out: Path) -> None:
    """Refuse to touch masks that exist.

    Raises:
        UsageError: Says how many there are, and names the ways to go on.
    """
    existing = [mask for job in jobs for mask in job.outputs if os.path.lexists(mask)]
    if existing:
        raise UsageError(
            f"{printable(str(out))}: {len(existing)} of the masks exist, such as "
            f"{printable(str(existing[0]))}; --resume keeps what is whole and goes on, "
            "--overwrite makes all anew, --out DIR takes another folder"
        )


def refuse_other_network(path: Path, facts: dict[str, Any]) -> None:
    """Refuse to go on with masks that were made in another way.

    Args:
        path: What the command before wrote of itself; nothing is refused without it.
        facts: The same of this command.

    Raises:
        UsageError: Names what differs.
    """
    before = _before(path)
    if changed := _changed(before, facts):
        raise UsageError(
            f"{printable(str(path.parent))}: its masks were made with another {changed}; "
            "--resume would mix them. Use --overwrite or another --out"
        )
    if before.get(ALSO):
        raise UsageError(
            f"{printable(str(path.parent))}: holds masks of several networks, so nobody knows "
            "which of them --resume may keep. Use --overwrite or another --out"
        )


def others_there(path: Path, facts: dict[str, Any], jobs: Iterable[Job]) -> list[Any]:
    """Return what made the masks of other images there, if not this command's network, and warn.

    Args:
        path: What the command before wrote of itself; it is about to be replaced.
        facts: The same of this command.
        jobs: What it writes; masks of these do not count, as all of them are made anew.

    Raises:
        UsageError: The file is damaged.
    """
    own = {mask for job in jobs for mask in job.outputs}
    others = (
        file
        for kind in KINDS
        for file in (path.parent / kind).rglob("*")
        if not file.name.startswith(".") and file.is_file()
        if own.isdisjoint((file, *file.parents))
    )
    before = _before(path)
    also = list(before.pop(ALSO, []))
    changed = _changed(before, facts)
    if not (changed or also) or (other := next(others, None)) is None:
        return []
    log.warning(
        "%s: also holds masks of other images that were made with another %s, such as %s; "
        "--out DIR takes another folder",
        *(printable(str(path.parent)), changed or "network", printable(str(other))),
    )
    return [*also, before] if changed else also


def _before(path: Path) -> dict[str, Any]:
    """Return what the command before wrote of itself, nothing where there was none."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{printable(str(path))}: cannot be read ({error}), so nobody knows which network "
            "made the masks there; remove the file, or take another --out"
        ) from error


def _changed(before: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return in what a command differs from the one before; nothing where there was none."""
    return ", ".join(key for key, value in facts.items() if before and before.get(key) != value)


def remove_masks(jobs: Iterable[Job]) -> None:
    """Remove the masks that are to be made anew.

    Were they replaced one by one instead, an interrupted `--overwrite` would leave masks of the
    network before, which `--resume` could not tell from those of the new one.
    """
    for job in jobs:
        for kind, mask in job.masks.items():
            if job.in_frames(kind) and mask.is_dir() and not mask.is_symlink():
                remove_frames(mask)
            else:
                mask.unlink(missing_ok=True)
        if job.record is not None:
            job.record.unlink(missing_ok=True)


def remove_frames(folder: Path) -> None:
    """Remove a folder of frames; one that holds anything else is left, with that in it.

    Raises:
        OSError: It is not empty now.
    """
    for entry in list(folder.iterdir()):
        if _FRAME.fullmatch(entry.name):
            entry.unlink()
    folder.rmdir()


@contextmanager
def shared(out: Path, jobs: Iterable[Job]) -> Iterator[None]:
    """Make `out`, and hold it together with other commands that write there now.

    The first to come removes what a killed one left under temporary names.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock, and what was left stays
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_left_over({out, *(mask.parent for job in jobs for mask in job.outputs)})
        except BlockingIOError:
            log.info("another command writes to %s too", printable(str(out)))
        except OSError as error:
            log.debug("%s: this disk has no locks: %s", out, error)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_left_over(folders: Iterable[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            continue
        for entry in list(folder.iterdir()):
            if not _LEFT_OVER.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


@contextmanager
def named_faults(out: Path) -> Iterator[None]:
    """Turn a failed write below `out` into a sentence.

    Raises:
        EnvironmentFault: Full disk, no permission, a file where a folder should be, and the like.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of our talk has gone; the masks have no part in it
        raise
    except OSError as error:
        where = error.filename2 or error.filename or out
        raise EnvironmentFault(
            f"{printable(str(where))}: cannot be written: {error.strerror or error}; masks written "
            "so far are whole. Make room or choose another --out, then go on with --resume"
        ) from error
