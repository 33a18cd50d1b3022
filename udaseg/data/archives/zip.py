"""Read zip archives: a validated member list and the content of each file."""

import stat
import struct
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from udaseg.data.archives import members as checks
from udaseg.data.archives.members import Member, MemberContent
from udaseg.errors import DataError

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_HEADER_BYTES = 30
_ENCRYPTED_FLAG = 1
_MIN_MTIME = 315_532_800  # 1980, the earliest date in a zip


class ZipReader:
    """An open zip archive."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._start, entries = find_central_directory(archive)
        self._opened = zipfile.ZipFile(archive)
        self._entries = self._opened.infolist()
        if len(self._entries) != entries:
            self.close()
            raise checks.damaged_archive_error(archive, "its directory is ambiguous")

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def members(self) -> list[Member]:
        """Return all files of the archive; refuse unsafe members."""
        files, totals = [], checks.MemberTotals(self.archive)
        for entry in self._entries:
            # ZipFile cuts names at a zero byte, so the stored name is checked too
            checks.safe_member_path(entry.orig_filename, self.archive)
            member = self._member(entry)
            prefix = f"{self.archive}: member {entry.filename!r}"
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{prefix} is not a regular file")
            if entry.flag_bits & _ENCRYPTED_FLAG:
                raise DataError(
                    f"{prefix} is encrypted with a password; unpack it yourself (7z x asks for it) "
                    "and leave the folder next to the archive"
                )
            if entry.compress_type not in _METHODS:
                raise DataError(
                    f"{prefix} uses an unsupported compression method; unpack it yourself "
                    "(7z x) and leave the folder next to the archive"
                )
            totals.add(member)
            if not entry.is_dir():
                files.append(member)
        self._refuse_overlap()
        return files

    def contents(self) -> Iterator[MemberContent]:
        """Yield each file with a function that opens it."""
        for entry in self._entries:
            if not entry.is_dir():
                content = partial(self._opened.open, entry)
                yield MemberContent(self._member(entry), _modification_time(entry), content)

    def _member(self, entry: zipfile.ZipInfo) -> Member:
        name = checks.safe_member_path(entry.filename, self.archive)
        return Member(name, entry.file_size, entry.compress_size, entry.CRC)

    def _refuse_overlap(self) -> None:
        """Refuse overlapping members: they let a small file unpack to a huge one."""
        start = self._start
        for entry in sorted(self._entries, key=lambda entry: entry.header_offset, reverse=True):
            if entry.header_offset + _HEADER_BYTES + entry.compress_size > start:
                problem = f"member {entry.filename!r} overlaps another one"
                raise checks.damaged_archive_error(self.archive, problem)
            start = entry.header_offset


def _modification_time(entry: zipfile.ZipInfo) -> int:
    """Return the modification time; zips store no time zone, so UTC is assumed."""
    try:
        return int(datetime(*entry.date_time, tzinfo=UTC).timestamp())
    except ValueError:  # some writers store month 0
        return _MIN_MTIME


_END_SIGNATURE = b"PK\5\6"
_RECORD_64_SIGNATURE = b"PK\6\6"
_LOCATOR_64_SIGNATURE = b"PK\6\7"
_ENTRY_SIGNATURE = b"PK\1\2"
_END_SIZE = 22
_LOCATOR_SIZE = 20
_RECORD_SIZE = 56
_ENTRY_SIZE = 46
_MAX_COMMENT = 2**16 - 1
_MAX_BYTES = 2**27


def find_central_directory(path: Path) -> tuple[int, int]:
    """Return the offset of a zip's directory and the number of its entries.

    The entries are counted, because the number that the zip gives may be wrong. The directory must
    be whole, not too long, and as the zip declares it.
    """
    with path.open("rb") as file:
        start, size, declared = _read_end_record(path, file)
        checks.refuse_too_many_members(path, declared)
        if size > _MAX_BYTES:
            raise DataError(f"{path}: its directory has {size:,} bytes; unpack it yourself")
        file.seek(start)
        count, position = 0, 0
        while position < size:
            head = file.read(_ENTRY_SIZE)
            if len(head) < _ENTRY_SIZE or not head.startswith(_ENTRY_SIGNATURE):
                raise checks.damaged_archive_error(path, f"entry {count + 1} of its directory")
            extra = sum(struct.unpack_from("<HHH", head, 28))
            file.seek(extra, 1)
            position += _ENTRY_SIZE + extra
            count += 1
            checks.refuse_too_many_members(path, count)
    if count != declared or position != size:
        raise checks.damaged_archive_error(
            path, f"its directory has {count:,} entries, not {declared:,}"
        )
    return start, count


def _read_end_record(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Return the start, size and declared number of entries of the directory."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END_SIZE - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    offset = tail.rfind(_END_SIGNATURE)
    if offset < 0 or offset + _END_SIZE > len(tail):
        raise checks.damaged_archive_error(path, "it is cut off, or not a zip")
    disk, first_disk, _, declared, size, _ = struct.unpack_from("<HHHHII", tail, offset + 4)
    if disk or first_disk:
        raise DataError(f"{path}: is one of several parts of a zip; unpack it yourself")
    end = tail_start + offset
    file.seek(max(0, end - _LOCATOR_SIZE))
    if end >= _LOCATOR_SIZE and file.read(4) == _LOCATOR_64_SIGNATURE:
        # zip64: as in Python's reader, the record is right before its locator
        end -= _LOCATOR_SIZE + _RECORD_SIZE
        file.seek(max(0, end))
        record = file.read(_RECORD_SIZE)
        if end < 0 or not record.startswith(_RECORD_64_SIGNATURE):
            raise checks.damaged_archive_error(path, "the record of its directory")
        declared, size = struct.unpack_from("<QQ", record, 32)
    if size > end:
        raise checks.damaged_archive_error(path, "its directory is larger than the file")
    return end - size, size, declared
