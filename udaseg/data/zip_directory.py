"""The central directory of a zip, read piece by piece to check its length first."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from udaseg.data.archive_members import damaged, refuse_number
from udaseg.errors import DataError

_END = b"PK\5\6"
_RECORD_64 = b"PK\6\6"
_LOCATOR_64 = b"PK\6\7"
_ENTRY = b"PK\1\2"
_END_SIZE = 22
_LOCATOR_SIZE = 20
_RECORD_SIZE = 56
_ENTRY_SIZE = 46
_MAX_COMMENT = 2**16 - 1
_MAX_BYTES = 2**27


@dataclass(frozen=True)
class Directory:
    """The position of a zip's directory.

    Attributes:
        start: Offset of its first byte; the members come before it.
        entries: Number of entries.
    """

    start: int
    entries: int


def zip_directory(path: Path) -> Directory:
    """Return the position of a zip's directory.

    The entries are counted, because the number that the zip gives may be wrong.

    Raises:
        DataError: The directory is missing, too long, or differs from what the zip declares.
    """
    with path.open("rb") as file:
        start, size, declared = _found(path, file)
        refuse_number(path, declared)
        if size > _MAX_BYTES:
            raise DataError(f"{path}: its directory has {size:,} bytes; unpack it yourself")
        file.seek(start)
        count, position = 0, 0
        while position < size:
            head = file.read(_ENTRY_SIZE)
            if len(head) < _ENTRY_SIZE or not head.startswith(_ENTRY):
                raise damaged(path, f"entry {count + 1} of its directory")
            extra = sum(struct.unpack_from("<HHH", head, 28))
            file.seek(extra, 1)
            position += _ENTRY_SIZE + extra
            count += 1
            refuse_number(path, count)
    if count != declared or position != size:
        raise damaged(path, f"its directory has {count:,} entries, not {declared:,}")
    return Directory(start, count)


def _found(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Return the start, size and declared number of entries of the directory."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END_SIZE - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    offset = tail.rfind(_END)
    if offset < 0 or offset + _END_SIZE > len(tail):
        raise damaged(path, "it is cut off, or not a zip")
    disk, first_disk, _, declared, size, _ = struct.unpack_from("<HHHHII", tail, offset + 4)
    if disk or first_disk:
        raise DataError(f"{path}: is one of several parts of a zip; unpack it yourself")
    end = tail_start + offset
    file.seek(max(0, end - _LOCATOR_SIZE))
    if end >= _LOCATOR_SIZE and file.read(4) == _LOCATOR_64:
        # zip64: as in Python's reader, the record is right before its locator
        end -= _LOCATOR_SIZE + _RECORD_SIZE
        file.seek(max(0, end))
        record = file.read(_RECORD_SIZE)
        if end < 0 or not record.startswith(_RECORD_64):
            raise damaged(path, "the record of its directory")
        declared, size = struct.unpack_from("<QQ", record, 32)
    if size > end:
        raise damaged(path, "its directory is larger than the file")
    return end - size, size, declared
