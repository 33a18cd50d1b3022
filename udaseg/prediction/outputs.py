"""Plan the masks of `predict`, and protect existing files: conflicts, other networks, locks."""

import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from udaseg.data.files.forms import parse_form
from udaseg.data.files.images import read_image
from udaseg.errors import DataError, EnvironmentFault, UsageError
from udaseg.files import TEMPORARY_NAME, sha256, shared_folder
from udaseg.inference.options import MASK_KINDS, MAX_PIXELS, UPRIGHT_KINDS, MaskKind
from udaseg.prediction.inputs import Inputs, is_video
from udaseg.sizes import Size

log = logging.getLogger(__name__)

OTHER_NETWORKS = "also_there"
"""Key of the settings of other networks whose masks are in the same folder."""

TEMPORARY_PREFIX = ".video-"
_TEMPORARY_NAME = re.compile(rf"{TEMPORARY_NAME.pattern}|\.video-[a-z0-9_]{{8}}")
_FRAMES_SUFFIX = ".frames"
_FRAME_NAME = re.compile(r"[0-9]{6,}\.(png|npy)")
_RECORD_FOLDER = "videos"
_COLOR_KINDS = ("color", "overlay")


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
        return self.record is not None and self.masks[kind].suffix == _FRAMES_SUFFIX


def file_suffix(kind: MaskKind) -> str:
    """Return the file suffix of a kind of mask."""
    return ".npy" if kind == "logits" else ".png"


def plan_outputs(
    inputs: Inputs, out: Path, kinds: Sequence[MaskKind], *, video: str = "mp4"
) -> list[Job]:
    """Return one job per input: `<out>/<kind>/<path of the image>.png`, logits as `.npy`.

    The jobs are those of the images, then those of the videos, each sorted.

    The path is relative to the deepest folder shared by all inputs, so folders of equal names stay
    apart. `a.jpg` becomes `a.png`; if `a.png` is another input next to it, both keep their suffix:
    `a.jpg.png` and `a.png.png`. Of names that differ only in case or Unicode form, which some file
    systems hold for one, all but the first get a digest, and a warning says so. For a video
    `a.mov`, colour kinds become the video `a.mp4`; all other kinds would be changed by a codec and
    become frames `a.mov.frames/000000.png` and so on.

    An output in an input folder or that would overwrite an input, and an input in `out`, are
    refused.

    Args:
        inputs: The inputs.
        out: Folder of the masks.
        kinds: Kinds of mask.
        video: Suffix of colour videos, or `frames` to write frames there too.
    """
    base = shared_folder_of(inputs)
    images = sorted(inputs.images, key=lambda path: (is_video(path), path))
    stems = {_fold_case(image): _stem_key(image) for image in images}
    counts = Counter(stems.values())

    def job(image: Path, tag: str) -> Job:
        path = image.relative_to(base)
        name = path.stem if counts[_stem_key(image)] == 1 else path.name
        masks = {
            kind: out / kind / path.with_name(_output_name(image, name, tag, kind, video))
            for kind in kinds
        }
        record = out / _RECORD_FOLDER / path.with_name(f"{path.name}{tag}.json")
        return Job(image, masks, record if is_video(image) else None)

    jobs = _without_shared_outputs(images, job)
    _refuse_mixing_with_inputs(jobs, inputs, out)
    return jobs


def shared_folder_of(inputs: Inputs) -> Path:
    """Return the deepest folder that all inputs are in."""
    parents = [*(str(path.parent) for path in inputs.images), *map(str, inputs.folders)]
    return Path(os.path.commonpath(parents))


def _output_name(image: Path, stem: str, tag: str, kind: MaskKind, video: str) -> str:
    if not is_video(image):
        return f"{stem}{tag}{file_suffix(kind)}"
    if video != "frames" and kind in _COLOR_KINDS:
        return f"{stem}{tag}.{video}"
    return f"{image.name}{tag}{_FRAMES_SUFFIX}"


def _stem_key(image: Path) -> tuple[bool, str]:
    return is_video(image), _fold_case(image.with_suffix(""))


def _fold_case(path: Path) -> str:
    """Return a path folded as on a file system that ignores case and Unicode normal form."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _without_shared_outputs(images: Sequence[Path], job: Callable[[Path, str], Job]) -> list[Job]:
    """Return a job per image: if an output is taken, its names end in a digest of the image's name.

    The digest does not depend on other images, so that a later command gives the same names.

    Args:
        images: The images, in the order of their right to a name.
        job: Returns the job of an image with a text at the end of its names.
    """
    plain = [job(image, "") for image in images]
    folders = {mask.parent for each in plain for mask in each.outputs}
    taken = {_fold_case(parent) for folder in folders for parent in (folder, *folder.parents)}
    jobs, renamed = [], []
    for image, chosen in zip(images, plain, strict=True):
        attempts = 0
        while not taken.isdisjoint(map(_fold_case, chosen.outputs)):
            attempts += 1
            digest = sha256(os.fsencode(image.name) + b" %d" % attempts)
            chosen = job(image, f"-{digest[:6]}")
        taken.update(map(_fold_case, chosen.outputs))
        jobs.append(chosen)
        if attempts:
            renamed.append(chosen)
    if renamed:
        log.warning(
            "%d of the inputs get masks with a digest in the name, such as %s for %s: where case "
            "and Unicode form do not count, the name alone is that of another mask",
            len(renamed),
            renamed[0].outputs[0],
            renamed[0].image,
        )
    return jobs


def _refuse_mixing_with_inputs(jobs: Sequence[Job], inputs: Inputs, out: Path) -> None:
    """Refuse outputs below an input folder, inputs below `out`, and outputs that are inputs."""
    # realpath, because Path.resolve raises on a link to itself
    target = Path(os.path.realpath(out))
    for folder in inputs.folders:
        if target.is_relative_to(folder.resolve()):
            raise UsageError(
                f"{out}: lies in the input folder {folder}, so the "
                "next prediction would read the masks as images; choose another --out"
            )
    paths = {os.path.realpath(job.image) for job in jobs}
    files = {_file_identity(job.image) for job in jobs} - {None}
    for job in jobs:
        for mask in job.outputs:  # even under another name, case or link
            if os.path.realpath(mask) in paths or _file_identity(mask) in files:
                raise UsageError(
                    f"{mask}: is also an input and would be overwritten; choose another --out"
                )
    for job in jobs:
        if Path(os.path.realpath(job.image)).is_relative_to(target):
            raise UsageError(
                f"{job.image}: this input is inside the output folder {out}; choose another --out"
            )


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def refuse_existing(jobs: Iterable[Job], out: Path) -> None:
    """Raise a `UsageError` if masks exist already; it gives the options to continue."""
    existing = [mask for job in jobs for mask in job.outputs if os.path.lexists(mask)]
    if existing:
        raise UsageError(
            f"{out}: {len(existing)} of the masks exist already, such as "
            f"{existing[0]}; use --resume to keep complete masks and continue, "
            "--overwrite to replace them, or --out DIR for another folder"
        )


def find_other_networks(
    path: Path, facts: Mapping[str, Any], jobs: Iterable[Job], *, resume: bool
) -> list[Any]:
    """Return the settings of other networks whose masks stay in the folder, and warn of them.

    Args:
        path: Settings file of the previous command; the caller replaces it.
        facts: Settings of this command.
        jobs: Jobs of this command; their masks do not count, because all of them are replaced.
        resume: Raise a `UsageError` for other settings instead.
    """
    previous = _read_previous_settings(path)
    earlier_facts = list(previous.pop(OTHER_NETWORKS, []))
    changed = ", ".join(key for key in facts if previous and previous.get(key) != facts[key])
    if resume:
        if changed:
            raise UsageError(
                f"{path.parent}: its masks were made with a different {changed}; "
                "--resume would mix both. Use --overwrite or another --out"
            )
        if earlier_facts:
            raise UsageError(
                f"{path.parent}: contains masks of several networks, so --resume "
                "cannot know which to keep. Use --overwrite or another --out"
            )
        return []
    new_masks = {mask for job in jobs for mask in job.outputs}
    others = (
        file
        for kind in MASK_KINDS
        for file in (path.parent / kind).rglob("*")
        if not file.name.startswith(".") and file.is_file()
        if new_masks.isdisjoint((file, *file.parents))
    )
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
def output_lock(out: Path, jobs: Iterable[Job]) -> Iterator[None]:
    """Create `out` and hold a shared lock on it.

    The first command there removes temporary files that a killed command left behind.
    """
    out.mkdir(parents=True, exist_ok=True)
    folders = {out, *(mask.parent for job in jobs for mask in job.outputs)}
    with shared_folder(out, lambda: _remove_temporary_files(folders)):
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
