"""Write, read and rotate small videos for tests."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.support.colors import painted, random_labels
from udaseg.data.files.video import VideoWriter


def write_film(
    path: Path, frames: int, size: tuple[int, int] = (32, 48), *, fps: float = 12.5, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Write a video of coloured blocks and return the labels of each frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [random_labels(*size, seed=seed + number) for number in range(frames)]
    # blocks of 16 pixels, which a codec preserves
    shown = [np.kron(each[::4, ::4], np.ones((16, 16), np.uint8)) for each in shown]
    shown = [each[: size[0], : size[1]] for each in shown]
    with VideoWriter(path, fps, size) as film:
        for labels in shown:
            film.write(painted(labels))
    return shown


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    """Return the RGB frames of a video, read without the package's reader."""
    film, found = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = film.read()
        if not good:
            return found
        found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def turn(path: Path, degrees: int) -> None:
    """Rotate an MP4 for display through the matrix in its track header."""
    matrix: Sequence[int] = {
        0: (1, 0, 0, 1),
        90: (0, 1, -1, 0),
        180: (-1, 0, 0, -1),
        270: (0, -1, 1, 0),
    }[degrees]
    data = bytearray(path.read_bytes())
    # version and flags, times, ids, duration, layer, volume: 40 bytes before the matrix
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (part * 65536 for part in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
