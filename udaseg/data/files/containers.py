"""Check that a file is a complete video before FFmpeg opens it.

FFmpeg reads a truncated file up to its end without an error. It also accepts playlists of other
files as videos, whatever their suffix.
"""

from pathlib import Path
from typing import BinaryIO

from udaseg.errors import DataError

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MPEG = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")


def refuse_truncated_video(path: Path, file: BinaryIO, length: int) -> None:
    """Raise a `DataError` if `file`, of `length` bytes, is not a video or is cut off.

    Supports MP4, MOV, AVI, Matroska and WebM. Of MPEG streams only the start is checked, and live
    recordings state no length.
    """
    header = file.read(12)
    if header[4:8] in _BOXES:
        complete = _is_complete_mp4(file, length)
    elif header[:4] == b"RIFF" and header[8:] == b"AVI ":
        complete = _is_complete_avi(file, length)
    elif header[:4] == _EBML:
        complete = _is_complete_matroska(file, length)
    elif header[:4] in _MPEG:
        complete = True
    else:
        raise DataError(f"{path}: is {'not a readable video' if header else 'empty'}")
    if not complete:
        raise DataError(f"{path}: damaged: the video is cut off; repair it, or pass its frames")


def _is_complete_mp4(file: BinaryIO, length: int) -> bool:
    """Return whether all boxes end inside the file, and one is the index (moov)."""
    position, has_index = 0, False
    while position + 8 <= length:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # the 64-bit size follows
            size = int.from_bytes(header[8:], "big")
        elif size == 0:  # the box extends to the end of the file
            size = length - position
        if size < 8:
            return False
        has_index |= header[4:8] == b"moov"
        position += size
    return has_index and position <= length


def _is_complete_avi(file: BinaryIO, length: int) -> bool:
    """Return whether all RIFF chunks end inside the file; long videos have several."""
    end = 0
    file.seek(0)
    while file.read(4) == b"RIFF":
        size = int.from_bytes(file.read(4), "little")
        end = file.tell() + size
        file.seek(size + size % 2, 1)
    return end <= length


def _is_complete_matroska(file: BinaryIO, length: int) -> bool:
    """Return whether the segment ends inside the file, or has no known end (a live recording)."""
    file.seek(4)
    file.seek(_ebml_size(file) or 0, 1)
    is_segment = file.read(4) == _SEGMENT
    size = _ebml_size(file)
    start = file.tell()
    return is_segment and start < length and (size is None or start + size <= length)


def _ebml_size(file: BinaryIO) -> int | None:
    """Return the size of an EBML element, whose leading zero bits give its width; None: unknown."""
    first = file.read(1)
    width = 9 - int.from_bytes(first, "big").bit_length()
    limit = 1 << 7 * width
    size = int.from_bytes(first + file.read(width - 1), "big") % limit  # without the width's bit
    return None if size == limit - 1 else size
