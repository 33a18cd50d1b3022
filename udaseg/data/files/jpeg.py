"""Read the size of a JPEG from its header, and find one whose data end early.

A decoder fills in what is missing in grey, without an error.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from udaseg.errors import DataError

START = b"\xff\xd8"
END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_MAX_SEGMENTS = 20_000
_START_OF_SCAN = 0xDA
_BASELINE = (0xC0, 0xC1)
_PROGRESSIVE = 0xC2
_COEFFICIENTS = 64  # of a block of 8x8 pixels

# frame headers contain the size; C4, C8 and CC in this range have other meanings
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_NO_CODES = b"\xff\x00" * 8
"""Ones, which are no code of a block. A decoder reads that many bits ahead."""


class Frame(NamedTuple):
    """What a JPEG says of its pixels; `marker` is its kind of compression."""

    marker: int
    height: int
    width: int
    components: int


def read_frame(path: Path, file: BinaryIO) -> Frame:
    """Return the frame header of the JPEG in `file`."""
    for marker, position, _ in segments(file):
        if marker in _FRAME_MARKERS and (frame := _frame(file, marker, position)):
            return frame
    raise DataError(f"{path}: damaged: the JPEG has no size")


def refuse_damaged_jpeg(path: Path, data: bytes) -> None:
    """Raise a `DataError` for a JPEG without an end, or with fewer data than its size needs.

    A baseline JPEG can still end early; `without_end` makes its decoder find that.
    """
    frame, start, in_scan = _frame_and_scan(data)
    # inside a scan, FF is always followed by 00 or a restart marker, so the first FFD9 ends it
    end = data.find(END, start) if start else -1
    if frame is None or end < 0:
        raise DataError(f"{path}: damaged: the JPEG is cut off")
    if frame.marker not in (*_BASELINE, _PROGRESSIVE):
        return
    blocks = frame.height * frame.width // _COEFFICIENTS  # each needs at least one bit
    several = frame.marker == _PROGRESSIVE or in_scan < frame.components
    complete = (end - start) * 8 >= blocks
    if not complete or (several and not _has_all_scans(data, start, end, frame.components)):
        raise DataError(f"{path}: damaged: the data of the JPEG end early")


def without_end(data: bytes) -> bytes:
    """Return a JPEG of one scan without its end, so that a decoder that needs more data fails.

    With the end in place, a decoder would fill in missing blocks. At most the last four are not
    missed. Other JPEGs are returned unchanged.
    """
    frame, start, in_scan = _frame_and_scan(data)
    if frame is None or frame.marker not in _BASELINE or in_scan < frame.components:
        return data
    return data[: data.find(END, start)] + _NO_CODES


def _frame_and_scan(data: bytes) -> tuple[Frame | None, int, int]:
    """Return the frame header, the start of the first scan's data, and the components in it."""
    file, frame = io.BytesIO(data), None
    for marker, position, length in segments(file):
        if marker in _FRAME_MARKERS:
            frame = _frame(file, marker, position)
        elif marker == _START_OF_SCAN and len(data) > position + 4:
            return frame, position + 2 + length, data[position + 4]
    return frame, 0, 0


def _frame(file: BinaryIO, marker: int, position: int) -> Frame | None:
    file.seek(position + 5)
    fields = file.read(5)
    if len(fields) < 5:
        return None
    height, width = (int.from_bytes(fields[at : at + 2], "big") for at in (0, 2))
    return Frame(marker, height, width, fields[4])


def _has_all_scans(data: bytes, start: int, end: int, components: int) -> bool:
    """Return whether the scans before `end` hold each coefficient of each component in full."""
    found: dict[int, set[int]] = {}
    position = data.rfind(_SCAN, 0, start)
    while 0 <= position < end:
        fields = position + 5 + 2 * data[position + 4]
        parts = data[fields : fields + 3]  # first and last coefficient, and their bits
        if len(parts) == 3 and not parts[2] & 15:
            for component in data[position + 5 : fields : 2]:
                found.setdefault(component, set()).update(range(parts[0], parts[1] + 1))
        position = data.find(_SCAN, fields)
    return sum(len(bands) >= _COEFFICIENTS for bands in found.values()) >= components


def segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield marker, position and length of each segment, the first scan last."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        file.seek(position)
        header = file.read(4)
        if len(header) < 4 or header[0] != 0xFF:
            return
        marker = header[1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            position += 2
        else:
            length = int.from_bytes(header[2:], "big")
            yield marker, position, length
            if marker == _START_OF_SCAN:
                return
            position += 2 + length
