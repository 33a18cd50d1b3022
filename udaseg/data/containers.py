"""What the bytes of a video file say before FFmpeg sees them: that it is one, and that it is whole.

FFmpeg reads a file that was cut off as far as it goes and says nothing; and it takes lists of
other files for videos, whatever they are called.
"""

from pathlib import Path
from typing import BinaryIO

from udaseg.errors import DataError

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MPEG = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MAX_PARTS = 100_000


def refuse_cut(path: Path, file: BinaryIO, length: int) -> None:
    """Refuse what is no video, or one whose parts go beyond its end.

    Known are MP4 and MOV, AVI, Matroska and WebM; of MPEG streams nothing but the start can be
    checked, and of live recordings no length is known.

    Args:
        path: How messages name it.
        file: At its start.
        length: Bytes of the file.

    Raises:
        DataError: No video, or cut off.
    """
    head = file.read(12)
    if head[4:8] in _BOXES:
        whole = _boxes_fit(file, length)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        whole = _riffs_fit(file, length)
    elif head[:4] == _EBML:
        whole = _segment_fits(file, length)
    elif head[:4] in _MPEG:
        whole = True
    else:
        raise DataError(f"{path}: is {'no video that can be read' if head else 'empty'}")
    if not whole:
        raise DataError(f"{path}: damaged: the video is cut off; give its frames, or mend it first")


def _boxes_fit(file: BinaryIO, length: int) -> bool:
    """Return whether the boxes of an MP4 end inside the file, and its index is among them."""
    place, index = 0, False
    for _ in range(_MAX_PARTS):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # the true size follows
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:  # until the end
            size = length - place
        if size < 8 or place + size > length:
            return False
        index |= head[4:8] == b"moov"
        place += size
    return index


def _riffs_fit(file: BinaryIO, length: int) -> bool:
    """Return whether the parts of an AVI end inside the file; long ones have several."""
    place = 0
    for _ in range(_MAX_PARTS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            break
        size = int.from_bytes(head[4:8], "little")
        if place + 8 + size > length:
            return False
        place += 8 + size + size % 2
    return True


def _segment_fits(file: BinaryIO, length: int) -> bool:
    """Return whether the one great element of a Matroska file ends inside it."""
    file.seek(4)
    start = _number(file)
    if start is None:
        return False
    file.seek(start, 1)
    if file.read(4) != _SEGMENT:
        return False
    place = file.tell()
    size = _number(file)
    if size is None:
        return False
    width = file.tell() - place
    unknown = size == 2 ** (7 * width) - 1  # of a live recording
    return unknown or file.tell() + size <= length


def _number(file: BinaryIO) -> int | None:
    """Return a number whose leading zero bits say how many bytes it has; None at the end."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    if len(rest) < more:
        return None
    return int.from_bytes(bytes([first[0] - (1 << (7 - more))]) + rest, "big")
