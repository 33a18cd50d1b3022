"""The directory of a zip, looked at piece by piece: how long it is, before all of it is read."""

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
    """Where a zip's directory lies.

    Attributes:
        start: Its first byte; members lie before it.
        entries: Their number.
    """

    start: int
    entries: int


def zip_directory(path: Path) -> Directory:
    """Return where the directory of a zip lies.

    The entries are counted as they lie there: the number that the zip gives may be a lie.

    Raises:
        DataError: None is there, or one that is too long or not what it says.
    """
    with path.open("rb") as file:
        start, size, told = _found(path, file)
        refuse_number(path, told)
        if size > _MAX_BYTES:
            raise DataError(f"{path}: a directory of {size:,} bytes; unpack it yourself")
        file.seek(start)
        count, position = 0, 0
        while position < size:
            head = file.read(_ENTRY_SIZE)
            if len(head) < _ENTRY_SIZE or not head.startswith(_ENTRY):
                raise damaged(path, f"entry {count + 1} of its directory")
            more = sum(struct.unpack_from("<HHH", head, 28))
            file.seek(more, 1)
            position += _ENTRY_SIZE + more
            count += 1
            refuse_number(path, count)
    if count != told or position != size:
        raise damaged(path, f"its directory has {count:,} entries, not {told:,}")
    return Directory(start, count)


def _found(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Return where the directory starts, its bytes, and the number of entries that it claims."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END_SIZE - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + _END_SIZE > len(tail):
        raise damaged(path, "it is cut off, or no zip")
    disk, first_disk, _, told, size, _ = struct.unpack_from("<HHHHII", tail, at + 4)
    if disk or first_disk:
        raise DataError(f"{path}: one of several parts of a zip; unpack it yourself")
    end = tail_start + at
    file.seek(max(0, end - _LOCATOR_SIZE))
    if end >= _LOCATOR_SIZE and file.read(4) == _LOCATOR_64:
        # of a large zip; as Python's reader takes it, the record lies right before its locator
        end -= _LOCATOR_SIZE + _RECORD_SIZE
        file.seek(max(0, end))
        record = file.read(_RECORD_SIZE)
        if end < 0 or not record.startswith(_RECORD_64):
            raise damaged(path, "the record of its directory")
        told, size = struct.unpack_from("<QQ", record, 32)
    if size > end:
        raise damaged(path, "its directory is larger than the file")
    return end - size, size, told
