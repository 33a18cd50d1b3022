"""Write the masks of videos, frame by frame.

A video is written completely or not at all.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.images import Pixels
from udaseg.data.files.video import VideoReader, VideoWriter
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.display.pictures import color_mask
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError
from udaseg.files import write_json
from udaseg.inference.kinds import MaskKind
from udaseg.inference.masks import MaskContent, blend_colors, count_ids, write_masks
from udaseg.inference.pipeline import Limit, OrderedWork, batches_of_one_size
from udaseg.prediction.images import MaskPredictor, Outcome, StopRequested
from udaseg.prediction.inputs import Job, file_suffix
from udaseg.prediction.outputs import TEMPORARY_PREFIX, remove_frames
from udaseg.signals import StopSignal

log = logging.getLogger(__name__)
_WRITE_LIMIT = Limit(4)


def predict_videos(
    jobs: Sequence[Job],
    predictor: MaskPredictor,
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
            outcome.kept += 1
            outcome.done += 1
            continue
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out))
        try:
            pixels, frames = _predict_video(job, predictor, temporary, stop)
        except DataError as error:
            outcome.add_failure(job.image, str(error))
        except StopRequested:
            return
        else:
            outcome.pixels += pixels
            outcome.frames += frames
            outcome.videos += 1
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        outcome.done += 1


def is_video_complete(job: Job) -> bool:
    """Return whether all outputs of a video exist with their recorded digests."""
    assert job.record is not None
    try:
        written = json.loads(job.record.read_text(encoding="utf-8"))["written"]
        return all(output_digest(job.masks[kind]) == written[kind] for kind in job.masks)
    except (OSError, ValueError, LookupError, TypeError):
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
    job: Job, predictor: MaskPredictor, temporary: Path, stop: StopSignal
) -> tuple[NDArray[np.int64], int]:
    """Predict a video under temporary names, then rename its outputs and write the record.

    Returns:
        (256,) newly predicted pixels of each label, and the number of frames.
    """
    temporary_paths = {kind: temporary / kind / job.masks[kind].name for kind in job.masks}
    with VideoReader(job.image) as video, contextlib.ExitStack() as stack:
        progress = _start_progress(job.image, video.declared_frames, stack)
        batches = batches_of_one_size(video, lambda frame: frame.shape, Limit(predictor.batch))
        # the first frame sets the size of all, rotated as the file's metadata says
        batch = next(batches)
        writer = stack.enter_context(
            _VideoMaskWriter(job, temporary_paths, video, predictor.model.classes)
        )
        while batch:
            inputs = [predictor.resize(job.image, frame) for frame in batch]
            predictions = predictor.predict(inputs, [video.size] * len(batch))
            for frame, prediction in zip(batch, predictions, strict=True):
                writer.write(frame, prediction)
            if progress is not None:
                progress.advance(len(batch))
            if stop.number is not None:
                raise StopRequested
            batch = next(batches, [])
    _move_outputs(job, temporary_paths)
    assert job.record is not None
    write_json(job.record, _make_record(job, video))
    log.info("%s: %d frames predicted", job.image, video.frames_read)
    return writer.pixels, video.frames_read


def _move_outputs(job: Job, temporary_paths: Mapping[MaskKind, Path]) -> None:
    """Rename the complete outputs of a video to their final names."""
    for kind, path in temporary_paths.items():
        target = job.masks[kind]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and job.writes_frames(kind):  # left by a command that was killed here
            remove_frames(target)
        path.replace(target)


def _make_record(job: Job, video: VideoReader) -> Mapping[str, Any]:
    return {
        "video": str(job.image).encode("utf-8", "backslashreplace").decode("utf-8"),
        "frames": video.frames_read,
        "frames_of_its_header": video.declared_frames,
        "fps": video.fps,
        "size": list(video.size),
        "written": {kind: output_digest(path) for kind, path in job.masks.items()},
    }


def _start_progress(
    video: Path, frames: int | None, stack: contextlib.ExitStack
) -> WorkProgress | None:
    """Return a progress bar for a video's frames; None if their number is unknown."""
    if frames is None:
        return None
    title = f"predict {video.name}"
    return stack.enter_context(WorkProgress(title, frames, unit="frames"))


class _VideoMaskWriter:
    """Context that writes the masks of frames in a background thread and counts their pixels.

    Args:
        job: The video.
        temporary_paths: Temporary file or folder of each kind.
        reader: The video reader; gives size and frame rate.
        classes: Classes with their colours.

    Attributes:
        pixels: (256,) pixel counts, one per id; complete once the context is left.
    """

    def __init__(
        self,
        job: Job,
        temporary_paths: Mapping[MaskKind, Path],
        reader: VideoReader,
        classes: ClassSpace,
    ) -> None:
        self._job, self._temporary_paths = job, temporary_paths
        self._reader, self._classes = reader, classes
        self._frames = 0
        self.pixels = np.zeros(IGNORE + 1, np.int64)

    def __enter__(self) -> Self:
        self._work = OrderedWork(_WRITE_LIMIT)
        self._stack = contextlib.ExitStack()
        self._writers: dict[MaskKind, VideoWriter] = {}
        for kind, path in self._temporary_paths.items():
            path.parent.mkdir()
            if self._job.writes_frames(kind):
                path.mkdir()
                continue
            writer = VideoWriter(path, self._reader.fps, self._reader.size)
            try:
                self._writers[kind] = self._stack.enter_context(writer)
            except DataError as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise DataError(f"{self._job.image}: {error}") from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._work.__exit__(kind, error, trace)
        finally:
            self._stack.__exit__(kind, error, trace)

    def write(self, frame: Pixels, prediction: MaskContent) -> None:
        """Queue the masks of the next frame for writing."""
        self._work.submit(partial(self._write, self._frames, frame, prediction))
        self._frames += 1

    def _write(self, index: int, frame: Pixels, prediction: MaskContent) -> None:
        frame_paths = {
            kind: folder / f"{index:06d}{file_suffix(kind)}"
            for kind, folder in self._temporary_paths.items()
            if kind not in self._writers
        }
        write_masks(frame_paths, frame, prediction, self._classes)
        for kind, writer in self._writers.items():
            if kind == "color":
                writer.write(color_mask(prediction.labels, self._classes.colors))
            else:
                writer.write(blend_colors(frame, prediction.labels, self._classes))
        self.pixels += count_ids(prediction.labels)
