"""Read and write the frames of videos, by OpenCV's FFmpeg."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from udaseg.data.files.containers import refuse_truncated_video
from udaseg.data.files.headers import MAX_PIXELS
from udaseg.data.files.images import Pixels, refuse_irregular
from udaseg.errors import DataError, EnvironmentFault

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

# VP8 is ten times faster to write than VP9 and plays in browsers; MPEG-4 part 2 does not play
_CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
_DEFAULT_FPS = 25.0
_MAX_FPS = 1000.0

# rounded durations can add or remove a frame
_FRAME_TOLERANCE = 2


class VideoReader:
    """Read the frames of a video, (H, W, 3) uint8 RGB, as players show them.

    Use it as a context manager, and iterate over it.

    Attributes:
        size: (height, width) of a frame, after the rotation that the file declares.
        fps: Frames per second; 25 if the file has no plausible rate.
        declared_frames: Number of frames in the header; None if it gives none.
        frames_read: Number of frames yielded so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = (0, 0)
        self.fps = _DEFAULT_FPS
        self.declared_frames: int | None = None
        self.frames_read = 0

    def __enter__(self) -> Self:
        try:
            refuse_irregular(self._path)
            with self._path.open("rb") as file:
                refuse_truncated_video(self._path, file, self._path.stat().st_size)
            name = str(self._path.absolute())
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{self._path}: a video's name must be UTF-8; rename it") from error
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        self._stream = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        self._read_header()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.release()

    def __iter__(self) -> Iterator[Pixels]:
        while True:
            success, frame = self._stream.read()
            if not success:
                break
            if self.frames_read == 0:  # the header ignores rotation
                self.size = (frame.shape[0], frame.shape[1])
            elif frame.shape[:2] != self.size:
                raise DataError(
                    f"{self._path}: its frames change in size; use its frames as images"
                )
            self.frames_read += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        if self.frames_read == 0:
            raise DataError(f"{self._path}: damaged: no frame can be decoded")
        if self.frames_read + _FRAME_TOLERANCE < (self.declared_frames or 0):
            log.warning(
                "%s: its header gives %d frames, but %d could be decoded",
                self._path,
                self.declared_frames,
                self.frames_read,
            )

    def _read_header(self) -> None:
        if not self._stream.isOpened():
            raise DataError(f"{self._path}: cannot be opened as a video: damaged, or this "
                            "OpenCV lacks its codec; use its frames as images")  # fmt: skip
        width = self._stream.get(cv2.CAP_PROP_FRAME_WIDTH)
        height = self._stream.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if not (width >= 1 and height >= 1):
            raise DataError(f"{self._path}: damaged: it has no size")
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{self._path}: {width:.0f}x{height:.0f} is more than {MAX_PIXELS:,} pixels"
            )
        self.size = (int(height), int(width))
        fps = self._stream.get(cv2.CAP_PROP_FPS)
        if math.isfinite(fps) and 0 < fps <= _MAX_FPS:
            self.fps = fps
        else:
            log.warning("%s: has no frame rate; using %g frames per second", self._path, self.fps)
        # without a known length the count is negative or absurdly large
        frames = self._stream.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared_frames = int(frames) if 0 < frames < 2**31 else None


class VideoWriter:
    """Write RGB frames as a video; the suffix (mp4, webm, avi) sets the format.

    Use it as a context manager. The last column or row of a frame of odd width or height is
    repeated, because the codecs need even sizes. On leaving it raises an `EnvironmentFault` if the
    video is incomplete, for example because the disk is full, which FFmpeg does not report.

    Args:
        path: The video file, in an existing folder.
        fps: Frames per second.
        size: (height, width) of a frame.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._path, self._fps, self._size = path, fps, size
        self._padding = (size[0] % 2, size[1] % 2)
        self._frames = 0

    def __enter__(self) -> Self:
        codec = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix])
        width, height = self._size[1] + self._padding[1], self._size[0] + self._padding[0]
        self._stream = cv2.VideoWriter(
            str(self._path), cv2.CAP_FFMPEG, codec, self._fps, (width, height)
        )
        if not self._stream.isOpened():
            self._path.write_bytes(b"0")  # raises OSError if the folder is not writable
            self._path.unlink()
            raise DataError(
                f"this OpenCV cannot write {width}x{height} at {self._fps:g} frames "
                f"per second as {self._path.suffix[1:]}; write frames or avi instead"
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stream.release()
        if kind is None and not self._is_complete():
            raise EnvironmentFault(
                f"{self._path.parent}: a video of {self._frames} frames could not be written "
                "completely; is the disk full? Free some space, then continue with --resume"
            )

    def write(self, frame: Pixels) -> None:
        """Append a frame, (H, W, 3) uint8 RGB, of the given size."""
        stored = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if any(self._padding):
            border = (0, self._padding[0], 0, self._padding[1])
            stored = cv2.copyMakeBorder(stored, *border, cv2.BORDER_REPLICATE)
        self._stream.write(stored)
        self._frames += 1

    def _is_complete(self) -> bool:
        """Return whether all frames are in the file: OpenCV does not report failed writes."""
        try:
            with VideoReader(self._path) as video:
                frames = video.declared_frames
        except DataError:
            return False
        return frames is None or abs(frames - self._frames) <= _FRAME_TOLERANCE
