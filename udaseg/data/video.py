"""Videos: the frames of one in their order, and frames written as one, by OpenCV's FFmpeg."""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.containers import refuse_cut
from udaseg.data.headers import MAX_PIXELS
from udaseg.data.images import refuse_irregular
from udaseg.errors import DataError, EnvironmentFault

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# VP8 is ten times as quick to write as VP9, and plays in a browser, which MPEG-4 part 2 does not
_CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
_FPS_UNKNOWN = 25.0
_FASTEST_FPS = 1000.0
# a frame more or less is a matter of rounding durations
_SLACK_FRAMES = 2

log = logging.getLogger(__name__)

# a damaged video is a DataError of ours; FFmpeg would print lines of its own too
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoReader:
    """Context that gives the frames of a video, (H, W, 3) uint8 RGB, as a player shows them.

    Args:
        path: The file.

    Attributes:
        size: (height, width) of a frame, turned upright where the file says so.
        fps: Frames a second; 25 where the file gives none that can be.
        expected: How many frames its header speaks of; None where it does not.
        frames: How many were given so far.

    Raises:
        DataError: On entering: no file, no video, cut off, or of too many pixels.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = (0, 0)
        self.fps = _FPS_UNKNOWN
        self.expected: int | None = None
        self.frames = 0

    def __enter__(self) -> Self:
        try:
            refuse_irregular(self._path)
            with self._path.open("rb") as file:
                refuse_cut(self._path, file, self._path.stat().st_size)
            name = str(self._path.absolute())
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{self._path}: a video's name must be UTF-8; rename it") from error
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        self._film = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        if not self._film.isOpened():
            raise DataError(f"{self._path}: cannot be opened as a video; damaged, or of a codec "
                            "that this OpenCV has not; give its frames")  # fmt: skip
        try:
            self._read_facts()
        except DataError:
            self._film.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._film.release()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames.

        Raises:
            DataError: There is not one that can be decoded, or their size changes.
        """
        while True:
            good, frame = self._film.read()
            if not good or frame is None:
                break
            if self.frames == 0:  # the header knows nothing of a turn
                self.size = (frame.shape[0], frame.shape[1])
            elif frame.shape[:2] != self.size:
                raise DataError(f"{self._path}: its frames change their size; give its frames")
            self.frames += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        if self.frames == 0:
            raise DataError(f"{self._path}: damaged: no frame of it can be decoded")
        if self.expected is not None and self.frames < self.expected - _SLACK_FRAMES:
            log.warning(
                "%s: its header speaks of %d frames, %d could be decoded",
                *(self._path, self.expected, self.frames),
            )

    def _read_facts(self) -> None:
        width, height, fps, frames = (
            self._film.get(each)
            for each in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_COUNT,
            )
        )
        if not (width >= 1 and height >= 1):
            raise DataError(f"{self._path}: damaged: it has no size")
        if width * height > MAX_PIXELS:
            raise DataError(f"{self._path}: {width:.0f}x{height:.0f} is more than {MAX_PIXELS:,}")
        self.size = (int(height), int(width))
        if math.isfinite(fps) and 0 < fps <= _FASTEST_FPS:
            self.fps = float(fps)
        else:
            log.warning("%s: has no frame rate; %g a second are taken", self._path, self.fps)
        # of a stream without a length the count is negative or beyond all time
        self.expected = int(frames) if 0 < frames < 2**31 else None


class VideoWriter:
    """Context that writes RGB frames as a video; the suffix says how: mp4, webm, avi.

    A frame of odd width or height is continued by its last column or row, which the codecs need.

    Args:
        path: The file; its folder is there.
        fps: Frames a second.
        size: (height, width) of a frame.

    Raises:
        DataError: On entering: this OpenCV cannot write videos of this size or rate.
        OSError: On entering: nothing can be written there.
        EnvironmentFault: On leaving: it is not whole, as on a full disk, of which FFmpeg says
            nothing.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._path, self._fps = path, fps
        self._odd = (size[0] % 2, size[1] % 2)
        self._size = (size[0] + self._odd[0], size[1] + self._odd[1])
        self._frames = 0

    def __enter__(self) -> Self:
        code = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix])
        wide = (self._size[1], self._size[0])
        self._film = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, code, self._fps, wide)
        if not self._film.isOpened():
            self._path.write_bytes(b"0")  # a folder that cannot be written says so
            self._path.unlink()
            raise DataError(
                f"this OpenCV cannot write {wide[0]}x{wide[1]} at {self._fps:g} frames a second as "
                f"{self._path.suffix[1:]}; write frames instead, or avi"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._film.release()
        if error is None:
            self._refuse_unfinished()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) uint8 RGB of the size given."""
        stored = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if any(self._odd):
            border = (0, self._odd[0], 0, self._odd[1])
            stored = cv2.copyMakeBorder(stored, *border, cv2.BORDER_REPLICATE)
        self._film.write(stored)
        self._frames += 1

    def _refuse_unfinished(self) -> None:
        """Look at what was written: OpenCV does not say when a write fails."""
        try:
            with VideoReader(self._path) as film:
                whole = film.expected is None or abs(film.expected - self._frames) <= _SLACK_FRAMES
        except DataError:
            whole = False
        if not whole:
            raise EnvironmentFault(
                f"{self._path.parent}: a video of {self._frames} frames could not be written "
                "whole; is the disk full? Make room, then go on with --resume"
            )
