"""Protect existing files from `udaseg predict`: conflicts, masks of other networks, locks."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from udaseg.data.files.images import read_image
from udaseg.errors import DataError, EnvironmentFault, UsageError
from udaseg.inference.input_images import MAX_PIXELS
from udaseg.inference.kinds import MASK_KINDS, MaskKind
from udaseg.prediction.inputs import Job

log = logging.getLogger(__name__)

OTHER_NETWORKS = "also_there"
"""Key of the settings of other networks whose masks are in the same folder."""

TEMPORARY_PREFIX = ".video-"
_TEMPORARY_NAME = re.compile(r"\.[a-z0-9_]{8}\.tmp|\.video-[a-z0-9_]{8}")
_FRAME_NAME = re.compile(r"[0-9]{6,}\.(png|npy)")
_REMEDIES = {
    "use its frames as images": (".gif",),
    "save its pages as images": (".pdf",),
    "unpack it first": (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"),
}


def unsupported_reason(path: Path) -> str | None:
    """Return why a file with this suffix is skipped and what to do instead; None if it is read."""
    suffix = path.suffix.lower()
    for remedy, suffixes in _REMEDIES.items():
        if suffix in suffixes:
            return f"{path}: not an image; {remedy}"
    return None


def refuse_conflicts(jobs: Sequence[Job], out: Path) -> None:
    """Refuse inputs inside `out`, and masks whose path is also a folder for other masks.

    Raises:
        UsageError: Names one such path; nothing was written.
    """
    # realpath: Path.resolve raises for a link to itself
    target = Path(os.path.realpath(out))
    for job in jobs:
        if Path(os.path.realpath(job.image)).is_relative_to(target):
            raise UsageError(
                f"{job.image}: this input is inside the output folder {out}; choose another --out"
            )
    masks = {mask: job.image for job in jobs for mask in job.outputs}
    for mask, image in masks.items():
        for folder in mask.parents:
            if folder in masks:
                raise UsageError(
                    f"{folder}: would be both the mask of "
                    f"{masks[folder]} and a folder for the mask of "
                    f"{image}; predict them with different --out folders"
                )


def refuse_existing(jobs: Iterable[Job], out: Path) -> None:
    """Refuse to overwrite existing masks.

    Raises:
        UsageError: Gives their number and the options to continue.
    """
    existing = [mask for job in jobs for mask in job.outputs if os.path.lexists(mask)]
    if existing:
        raise UsageError(
            f"{out}: {len(existing)} of the masks exist already, such as "
            f"{existing[0]}; use --resume to keep complete masks and continue, "
            "--overwrite to replace them, or --out DIR for another folder"
        )


def refuse_other_network(path: Path, facts: dict[str, Any]) -> None:
    """Refuse to resume masks that were made with other settings.

    Args:
        path: Settings file of the previous command; nothing is refused without it.
        facts: Settings of this command.

    Raises:
        UsageError: Names the settings that differ.
    """
    previous = _read_previous_settings(path)
    if changed := _changed_settings(previous, facts):
        raise UsageError(
            f"{path.parent}: its masks were made with a different {changed}; "
            "--resume would mix both. Use --overwrite or another --out"
        )
    if previous.get(OTHER_NETWORKS):
        raise UsageError(
            f"{path.parent}: contains masks of several networks, so --resume "
            "cannot know which to keep. Use --overwrite or another --out"
        )


def find_other_networks(path: Path, facts: dict[str, Any], jobs: Iterable[Job]) -> list[Any]:
    """Return the settings of other networks whose masks stay in the folder, and warn of them.

    Args:
        path: Settings file of the previous command; the caller replaces it.
        facts: Settings of this command.
        jobs: Jobs of this command; their masks do not count, because all of them are replaced.

    Raises:
        UsageError: The settings file is damaged.
    """
    new_masks = {mask for job in jobs for mask in job.outputs}
    others = (
        file
        for kind in MASK_KINDS
        for file in (path.parent / kind).rglob("*")
        if not file.name.startswith(".") and file.is_file()
        if new_masks.isdisjoint((file, *file.parents))
    )
    previous = _read_previous_settings(path)
    earlier_facts = list(previous.pop(OTHER_NETWORKS, []))
    changed = _changed_settings(previous, facts)
    if not (changed or earlier_facts) or (other := next(others, None)) is None:
        return []
    log.warning(
        "%s: also contains masks of other images that were made with a different %s, such as "
        "%s; use --out DIR for another folder",
        path.parent,
        changed or "network",
        other,
    )
    return [*earlier_facts, previous] if changed else earlier_facts


def _read_previous_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the previous command; empty if there was none."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}), so it is unknown which network "
            "made the masks; remove the file, or use another --out"
        ) from error


def _changed_settings(previous: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the settings that differ from the previous command; empty if there was none."""
    return ", ".join(key for key, value in facts.items() if previous and previous.get(key) != value)


def masks_intact(masks: Mapping[MaskKind, Path], size: tuple[int, int]) -> bool:
    """Return whether all masks exist, are undamaged (checksums included), and have this size."""
    try:
        return all(
            _is_logits_file(path)
            if kind == "logits"
            else read_image(path, max_pixels=MAX_PIXELS).shape[:2] == size
            for kind, path in masks.items()
        )
    except DataError:
        return False


def _is_logits_file(path: Path) -> bool:
    """Return whether a file contains logits and is complete."""
    try:
        return bool(np.load(path, allow_pickle=False).ndim == 3)
    except (OSError, ValueError, EOFError):
        return False


def remove_masks(jobs: Iterable[Job]) -> None:
    """Remove the masks that will be overwritten.

    Replacing them one by one is not enough: an interrupted `--overwrite` would leave masks of the
    previous network, which `--resume` could not distinguish from the new ones.
    """
    for job in jobs:
        for kind, mask in job.masks.items():
            if job.writes_frames(kind) and mask.is_dir() and not mask.is_symlink():
                remove_frames(mask)
            else:
                mask.unlink(missing_ok=True)
        if job.record is not None:
            job.record.unlink(missing_ok=True)


def remove_frames(folder: Path) -> None:
    """Remove a folder of frames; any other file in it is kept, and then so is the folder.

    Raises:
        OSError: The folder is not empty afterwards.
    """
    for entry in list(folder.iterdir()):
        if _FRAME_NAME.fullmatch(entry.name):
            entry.unlink()
    folder.rmdir()


@contextmanager
def output_lock(out: Path, jobs: Iterable[Job]) -> Iterator[None]:
    """Create `out` and hold a shared lock on it.

    The first command there removes temporary files that a killed command left behind.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; leftover files are not removed
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_temporary_files({out, *(mask.parent for job in jobs for mask in job.outputs)})
        except BlockingIOError:
            log.info("another command also writes to %s", out)
        except OSError as error:
            log.debug("%s: this file system does not support locks: %s", out, error)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_temporary_files(folders: Iterable[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            continue
        for entry in list(folder.iterdir()):
            if not _TEMPORARY_NAME.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


@contextmanager
def convert_write_errors(out: Path) -> Iterator[None]:
    """Convert a failed write below `out` to an error message.

    Raises:
        EnvironmentFault: Full disk, no permission, a file where a folder should be, and so on.
    """
    try:
        yield
    except BrokenPipeError:  # stdout or stderr was closed; not a fault of the masks
        raise
    except OSError as error:
        path = error.filename2 or error.filename or out
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}; masks written "
            "so far are complete. Free disk space or choose another --out, then continue with "
            "--resume"
        ) from error
