"""Check that a file is a complete video before FFmpeg opens it.

FFmpeg reads a truncated file up to its end without an error. It also accepts playlists of other
files as videos, whatever their suffix.
"""

from pathlib import Path
from typing import BinaryIO

from udaseg.errors import DataError

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MPEG = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MAX_PARTS = 100_000


def refuse_truncated_video(path: Path, file: BinaryIO, length: int) -> None:
    """Raise a `DataError` if a file is not a video or is cut off.

    Supports MP4, MOV, AVI, Matroska and WebM. For MPEG streams only the start can be checked, and
    live recordings state no length.

    Args:
        path: Name for error messages.
        file: The open file, at position 0.
        length: Size of the file in bytes.
    """
    header = file.read(12)
    if header[4:8] in _BOXES:
        complete = _boxes_fit(file, length)
    elif header[:4] == b"RIFF" and header[8:12] == b"AVI ":
        complete = _riffs_fit(file, length)
    elif header[:4] == _EBML:
        complete = _segment_fits(file, length)
    elif header[:4] in _MPEG:
        complete = True
    else:
        raise DataError(f"{path}: is {'not a readable video' if header else 'empty'}")
    if not complete:
        raise DataError(f"{path}: damaged: the video is cut off; repair it, or pass its frames")


def _boxes_fit(file: BinaryIO, length: int) -> bool:
    """Return whether all boxes of an MP4 end inside the file and the index (moov) is present."""
    position, has_index = 0, False
    for _ in range(_MAX_PARTS):
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            break
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # the 64-bit size follows
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:  # the box extends to the end of the file
            size = length - position
        if size < 8 or position + size > length:
            return False
        has_index |= header[4:8] == b"moov"
        position += size
    return has_index


def _riffs_fit(file: BinaryIO, length: int) -> bool:
    """Return whether all RIFF chunks of an AVI end inside the file; long videos have several."""
    position = 0
    for _ in range(_MAX_PARTS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8 or header[:4] != b"RIFF":
            break
        size = int.from_bytes(header[4:8], "little")
        if position + 8 + size > length:
            return False
        position += 8 + size + size % 2
    return True


def _segment_fits(file: BinaryIO, length: int) -> bool:
    """Return whether the segment element of a Matroska file ends inside the file."""
    file.seek(4)
    start = _ebml_number(file)
    if start is None:
        return False
    file.seek(start, 1)
    if file.read(4) != _SEGMENT:
        return False
    position = file.tell()
    size = _ebml_number(file)
    if size is None:
        return False
    width = file.tell() - position
    unknown = size == 2 ** (7 * width) - 1  # as in a live recording
    return unknown or file.tell() + size <= length


def _ebml_number(file: BinaryIO) -> int | None:
    """Return an EBML number, whose leading zero bits encode its length; None at the end."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra_bytes = 8 - first[0].bit_length()
    tail = file.read(extra_bytes)
    if len(tail) < extra_bytes:
        return None
    return int.from_bytes(bytes([first[0] - (1 << (7 - extra_bytes))]) + tail, "big")
