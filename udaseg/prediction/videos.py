"""Write the masks of videos, frame by frame.

A video is written completely or not at all.
"""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.forms import has_form
from udaseg.data.files.video import VideoReader, VideoWriter
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.loading.threads import Limit, OrderedWork, batches_of_one_size
from udaseg.display.pictures import color_mask
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError
from udaseg.files import read_json, write_json
from udaseg.inference.input_images import InputImage
from udaseg.inference.masks import MaskContent, blend_colors, count_ids, write_masks
from udaseg.inference.options import MaskKind
from udaseg.inference.predictor import Predictor, PreparedImage
from udaseg.prediction.images import Outcome, StopRequested, queue_masks
from udaseg.prediction.outputs import TEMPORARY_PREFIX, remove_frames
from udaseg.prediction.plan import Job, file_suffix
from udaseg.signals import StopSignal

log = logging.getLogger(__name__)
_WRITE_LIMIT = Limit(4)


def predict_videos(
    jobs: Sequence[Job],
    predictor: Predictor,
    outcome: Outcome,
    stop: StopSignal,
    out: Path,
    *,
    resume: bool,
) -> None:
    """Predict each video until the end or a signal; `outcome` receives results and failures."""
    for job in jobs:
        if stop.number is not None:
            return
        if resume and is_video_complete(job):
            outcome.skip(job.image, None)
            continue
        with tempfile.TemporaryDirectory(
            prefix=TEMPORARY_PREFIX, dir=out, ignore_cleanup_errors=True
        ) as temporary:
            try:
                pixels, frames = _predict_video(job, predictor, Path(temporary), stop)
            except DataError as error:
                outcome.skip(job.image, str(error))
                continue
            except StopRequested:
                return
        outcome.pixels += pixels
        outcome.frames += frames
        outcome.videos += 1
        outcome.done += 1


def frame_batches(
    video: VideoReader, path: Path, predictor: Predictor
) -> Iterator[list[PreparedImage]]:
    """Yield the frames of a video in batches, prepared for the network."""
    frames = (
        predictor.prepare(InputImage(pixels, path=path, frame=number))
        for number, pixels in enumerate(video)
    )
    return batches_of_one_size(frames, PreparedImage.input_shape, Limit(predictor.batch))


def is_video_complete(job: Job) -> bool:
    """Return whether all outputs of a video exist with their recorded digests."""
    assert job.record is not None
    written: Any = read_json(job.record).get("written")
    if not has_form(written, dict[str, str]):
        return False
    try:
        return all(output_digest(path) == written[kind] for kind, path in job.masks.items())
    except (OSError, LookupError):
        return False


def output_digest(output: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(output.iterdir()) if output.is_dir() else [output]:
        with path.open("rb") as file:
            digest.update(path.name.encode("utf-8", "surrogateescape"))
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _predict_video(
    job: Job, predictor: Predictor, temporary: Path, stop: StopSignal
) -> tuple[NDArray[np.int64], int]:
    """Predict a video under temporary names, then rename its outputs and write the record.

    Return the (256,) predicted pixels of each label, and the number of frames.
    """
    temporary_paths = {kind: temporary / kind / job.masks[kind].name for kind in job.masks}
    pixels = np.zeros(IGNORE + 1, np.int64)
    with VideoReader(job.image) as video, contextlib.ExitStack() as stack:
        progress = None
        if video.declared_frames is not None:
            progress = stack.enter_context(
                WorkProgress(f"predict {job.image.name}", video.declared_frames, unit="frames")
            )
        write = None
        for batch in frame_batches(video, job.image, predictor):
            if write is None:  # the first frame sets the size of all, rotated as its file says
                write = _open_outputs(job, temporary_paths, video, predictor.classes, pixels, stack)
                writing = stack.enter_context(OrderedWork(_WRITE_LIMIT))
            queue_masks(batch, predictor, job.masks, write, writing)
            if progress is not None:
                progress.advance(len(batch))
            if stop.number is not None:
                raise StopRequested
    for kind, path in temporary_paths.items():
        target = job.masks[kind]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and job.writes_frames(kind):  # left by a command that was killed here
            remove_frames(target)
        path.replace(target)
    _write_record(job, video)
    log.info("%s: %d frames predicted", job.image, video.frames_read)
    return pixels, video.frames_read


def _open_outputs(
    job: Job,
    temporary_paths: Mapping[MaskKind, Path],
    video: VideoReader,
    classes: ClassSpace,
    pixels: NDArray[np.int64],
    stack: contextlib.ExitStack,
) -> Callable[[InputImage, MaskContent], None]:
    """Create the outputs of a video; return a function that writes the masks of a frame.

    The function adds to `pixels`, the (256,) counts of each id. `stack` closes the outputs.
    """
    folders: dict[MaskKind, Path] = {}
    writers: dict[MaskKind, VideoWriter] = {}
    for kind, path in temporary_paths.items():
        path.parent.mkdir()
        if job.writes_frames(kind):
            path.mkdir()
            folders[kind] = path
            continue
        try:
            writers[kind] = stack.enter_context(VideoWriter(path, video.fps, video.size))
        except DataError as error:
            raise DataError(f"{job.image}: {error}") from error

    def write(frame: InputImage, content: MaskContent) -> None:
        files = {
            kind: folder / f"{frame.frame:06d}{file_suffix(kind)}"
            for kind, folder in folders.items()
        }
        write_masks(files, frame.pixels, content, classes)
        for kind, writer in writers.items():
            if kind == "color":
                writer.write(color_mask(content.labels, classes.colors))
            else:
                writer.write(blend_colors(frame.pixels, content.labels, classes))
        np.add(pixels, count_ids(content.labels), out=pixels)

    return write


def _write_record(job: Job, video: VideoReader) -> None:
    assert job.record is not None
    record = {
        "video": str(job.image).encode("utf-8", "backslashreplace").decode("utf-8"),
        "frames": video.frames_read,
        "frames_of_its_header": video.declared_frames,
        "fps": video.fps,
        "size": video.size,
        "written": {kind: output_digest(path) for kind, path in job.masks.items()},
    }
    write_json(job.record, record)
