"""Protect the files in the output folder of `predict`: existing masks, other networks, locks."""

import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from udaseg.data.files.forms import parse_form
from udaseg.data.files.images import read_image
from udaseg.errors import DataError, EnvironmentFault, UsageError
from udaseg.files import TEMPORARY_NAME, shared_folder
from udaseg.inference.options import MASK_KINDS, MAX_PIXELS, UPRIGHT_KINDS, MaskKind
from udaseg.prediction.plan import Job, Plan
from udaseg.sizes import Size

log = logging.getLogger(__name__)

OTHER_NETWORKS = "also_there"
"""Key of the settings of other networks whose masks are in the same folder."""

TEMPORARY_PREFIX = ".video-"
_TEMPORARY_NAME = re.compile(rf"{TEMPORARY_NAME.pattern}|\.video-[a-z0-9_]{{8}}")
_FRAME_NAME = re.compile(r"[0-9]{6,}\.(png|npy)")


def refuse_existing(plan: Plan) -> None:
    """Raise a `UsageError` if masks exist already; it gives the options to continue."""
    if existing := plan.existing():
        raise UsageError(
            f"{plan.out}: {len(existing)} of the masks exist already, such as "
            f"{existing[0]}; use --resume to keep complete masks and continue, "
            "--overwrite to replace them, or --out DIR for another folder"
        )


def find_other_networks(
    path: Path, facts: Mapping[str, Any], plan: Plan, *, mixing_option: str | None
) -> list[Any]:
    """Return the settings of other networks whose masks stay in the folder, and warn of them.

    Args:
        path: Settings file of the previous command; the caller replaces it.
        facts: Settings of this command.
        plan: Jobs of this command; their masks do not count, because all of them are replaced.
        mixing_option: Option with which other settings are refused, because masks of both would be
            taken for those of one network.
    """
    previous = _read_previous_settings(path)
    earlier_facts = list(previous.pop(OTHER_NETWORKS, []))
    changed = ", ".join(key for key in facts if previous and previous.get(key) != facts[key])
    if mixing_option is not None:
        remedy = "Use --overwrite or another --out"
        if mixing_option == "--shard":
            remedy = "Use another --out"
        if changed:
            raise UsageError(
                f"{path.parent}: its masks were made with a different {changed}; "
                f"{mixing_option} would mix both. {remedy}"
            )
        if earlier_facts:
            raise UsageError(
                f"{path.parent}: contains masks of several networks, so {mixing_option} "
                f"cannot know which to keep. {remedy}"
            )
        return []
    if not (changed or earlier_facts) or (other := _other_mask(plan)) is None:
        return []
    log.warning(
        "%s: also contains masks of other images that were made with a different %s, such as "
        "%s; use --out DIR for another folder",
        path.parent,
        changed or "network",
        other,
    )
    return [*earlier_facts, previous] if changed else earlier_facts


def _other_mask(plan: Plan) -> Path | None:
    """Return a mask in the output folder that is not of the plan, if there is one."""
    new_masks = set(map(Path, plan.all_outputs()))
    others = (
        file
        for kind in MASK_KINDS
        for file in (plan.out / kind).rglob("*")
        if not file.name.startswith(".") and file.is_file()
        if new_masks.isdisjoint((file, *file.parents))
    )
    return next(others, None)


class _Settings(TypedDict):
    also_there: NotRequired[list[dict[str, Any]]]


def _read_previous_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the previous command; empty if there was none."""
    if not path.exists():
        return {}
    try:
        return dict(parse_form(path.read_text(encoding="utf-8"), _Settings))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}), so it is unknown which network "
            "made the masks; remove the file, or use another --out"
        ) from error


def masks_intact(masks: Mapping[MaskKind, Path], stored: Size, upright: Size) -> bool:
    """Return whether all masks exist, are undamaged (checksums included), and have their size."""
    try:
        return all(
            np.load(path, allow_pickle=False).ndim == 3
            if kind == "logits"
            else read_image(path, max_pixels=MAX_PIXELS).shape[:2]
            == (upright if kind in UPRIGHT_KINDS else stored)
            for kind, path in masks.items()
        )
    except (DataError, OSError, ValueError, EOFError):
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
    """Remove a folder of frames; any other file in it is kept, and then removing it fails."""
    for entry in list(folder.iterdir()):
        if _FRAME_NAME.fullmatch(entry.name):
            entry.unlink()
    folder.rmdir()


@contextmanager
def output_lock(plan: Plan) -> Iterator[None]:
    """Create the output folder and hold a shared lock on it.

    The first command there removes temporary files that a killed command left behind.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    folders = {plan.out, *map(Path, plan.folders())}
    with shared_folder(plan.out, lambda: _remove_temporary_files(folders)):
        yield


def _remove_temporary_files(folders: Iterable[Path]) -> None:
    for folder in filter(Path.is_dir, folders):
        for entry in list(folder.iterdir()):
            if not _TEMPORARY_NAME.fullmatch(entry.name):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


@contextmanager
def convert_write_errors(out: Path) -> Iterator[None]:
    """Convert a failed write below `out` to an `EnvironmentFault`: full disk, no permission, …."""
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
