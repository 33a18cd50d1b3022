"""The videos of `udaseg predict`: every frame is masked, and all of a video is kept or nothing."""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.commands.inputs import Job, file_suffix
from udaseg.commands.masks import Kept, blended, counted, write_masks
from udaseg.commands.prediction_images import Outcome
from udaseg.commands.prediction_look import Looker
from udaseg.commands.prediction_paths import TEMPORARY, remove_frames
from udaseg.data import IGNORE, ClassSpace, VideoReader, VideoWriter
from udaseg.engine import StopSignal
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress, color_mask, write_json_atomic

log = logging.getLogger(__name__)

_BEHIND = 4

Pixels = NDArray[np.uint8]


class _Stopped(Exception):
    """A signal came in the middle of a video."""


def predict_videos(
    jobs: Sequence[Job],
    looker: Looker,
    outcome: Outcome,
    stop: StopSignal,
    out: Path,
    *,
    resume: bool,
) -> None:
    """Mask each video; what is bad is noted in `outcome`, and a signal ends it."""
    for job in jobs:
        if stop.number is not None:
            return
        if resume and video_whole(job):
            outcome.kept += 1
            outcome.seen += 1
            continue
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=out))
        try:
            pixels, frames = _predict_video(job, looker, temporary, stop)
        except DataError as error:
            outcome.failed(job.image, str(error))
        except _Stopped:
            return
        else:
            outcome.pixels += pixels
            outcome.frames += frames
            outcome.videos += 1
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        outcome.seen += 1


def video_whole(job: Job) -> bool:
    """Return whether everything that was written of a video is there, to the byte."""
    assert job.record is not None
    try:
        written = json.loads(job.record.read_text(encoding="utf-8"))["written"]
        return all(digest_of(job.masks[kind]) == written[kind] for kind in job.masks)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def digest_of(output: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files."""
    whole = hashlib.sha256()
    for path in sorted(output.iterdir()) if output.is_dir() else [output]:
        with path.open("rb") as file:
            whole.update(path.name.encode("utf-8", "surrogateescape"))
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _predict_video(
    job: Job, looker: Looker, temporary: Path, stop: StopSignal
) -> tuple[NDArray[np.int64], int]:
    """Mask a video under temporary names, then give all of it its names, the record last.

    Returns:
        (256,) new labels, and the number of frames.
    """
    made = {kind: temporary / kind / job.masks[kind].name for kind in job.masks}
    pixels = np.zeros(IGNORE + 1, np.int64)
    with VideoReader(job.image) as film, contextlib.ExitStack() as stack:
        progress = _progress(job.image, film.expected, stack)
        frames = _batches(film, looker.batch)
        first = next(frames)  # its size is that of all, turned as the file says
        writer = stack.enter_context(_Film(job, made, film, looker.loaded.classes, pixels))
        while first:
            seen = [looker.prepared(job.image, frame) for frame in first]
            said = looker.look(seen, [film.size] * len(first))
            for frame, one in zip(first, said, strict=True):
                writer.write(frame, one)
            if progress is not None:
                progress.advance(len(first))
            if stop.number is not None:
                raise _Stopped
            first = next(frames, [])
    for kind, path in made.items():
        target = job.masks[kind]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and job.in_frames(kind):  # of a run that was killed here
            remove_frames(target)
        path.replace(target)
    assert job.record is not None
    write_json_atomic(job.record, _record(job, film))
    log.info("%s: %d frames masked", printable(str(job.image)), film.frames)
    return pixels, film.frames


def _record(job: Job, film: VideoReader) -> Mapping[str, Any]:
    return {
        "video": str(job.image).encode("utf-8", "backslashreplace").decode("utf-8"),
        "frames": film.frames,
        "frames_of_its_header": film.expected,
        "fps": film.fps,
        "size": list(film.size),
        "written": {kind: digest_of(path) for kind, path in job.masks.items()},
    }


def _progress(video: Path, frames: int | None, stack: contextlib.ExitStack) -> WorkProgress | None:
    """Return the progress of a video's frames; None where nobody knows how many there are."""
    if frames is None:
        return None
    what = f"predict {printable(video.name)}"
    return stack.enter_context(WorkProgress(what, frames, unit="frames"))


def _batches(film: VideoReader, most: int) -> Iterator[list[Pixels]]:
    batch = []
    for frame in film:
        batch.append(frame)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class _Film:
    """Context that writes the masks of frames in a thread, a few behind; and counts pixels.

    Attributes:
        job: The video.
        made: Temporary file or folder of each kind.
        film: Gives size and rate.
        classes: Whose colours.
        pixels: (256,) is filled.
    """

    job: Job
    made: Mapping[str, Path]
    film: VideoReader
    classes: ClassSpace
    pixels: NDArray[np.int64]

    def __enter__(self) -> "_Film":
        self._frames = 0
        self._waiting: deque[Future[NDArray[np.int64]]] = deque()
        self._open = contextlib.ExitStack()
        self._thread = ThreadPoolExecutor(1)
        self._writers: dict[str, VideoWriter] = {}
        for kind, path in self.made.items():
            path.parent.mkdir()
            if self.job.in_frames(kind):
                path.mkdir()
                continue
            writer = VideoWriter(path, self.film.fps, self.film.size)
            try:
                self._writers[kind] = self._open.enter_context(writer)
            except DataError as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise DataError(f"{self.job.image}: {error}") from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            while self._waiting and error is None:
                self.pixels += self._waiting.popleft().result()
        finally:
            self._thread.shutdown()
            self._open.__exit__(kind, error, trace)

    def write(self, frame: Pixels, said: Kept) -> None:
        """Write the masks of the next frame soon."""
        self._waiting.append(self._thread.submit(self._write, self._frames, frame, said))
        self._frames += 1
        while len(self._waiting) > _BEHIND:
            self.pixels += self._waiting.popleft().result()

    def _write(self, number: int, frame: Pixels, said: Kept) -> NDArray[np.int64]:
        single = {
            kind: folder / f"{number:06d}{file_suffix(kind)}"
            for kind, folder in self.made.items()
            if kind not in self._writers
        }
        write_masks(single, frame, said, self.classes)
        for kind, writer in self._writers.items():
            if kind == "color":
                writer.write(color_mask(said.labels, self.classes.colors))
            else:
                writer.write(blended(frame, said.labels, self.classes))
        return counted(said.labels)
