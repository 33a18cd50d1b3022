"""Read zip archives: a validated member list and the content of each file."""

import stat
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from udaseg.data.archive_members import Content, Member, Totals, damaged, safe_name
from udaseg.data.zip_directory import zip_directory
from udaseg.errors import DataError

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_HEADER = 30
_LOCKED = 1
_FIRST = 315_532_800  # 1980, the earliest date in a zip


class ZipReader:
    """An open zip archive.

    Raises:
        DataError: Its directory is damaged or too long.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        directory = zip_directory(archive)
        self._opened = zipfile.ZipFile(archive)
        self._entries = self._opened.infolist()
        if len(self._entries) != directory.entries:
            self.close()
            raise damaged(archive, "its directory is ambiguous")
        self._start = directory.start

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def members(self) -> list[Member]:
        """Return all files of the archive.

        Raises:
            DataError: A member would be written outside the target folder, is not a regular file,
                or is too large; or members overlap.
        """
        files, totals = [], Totals(self.archive)
        for entry in self._entries:
            # ZipFile cuts names at a zero byte, so the stored name is checked too
            safe_name(entry.orig_filename, self.archive)
            name = safe_name(entry.filename, self.archive)
            prefix = f"{self.archive}: member {entry.filename!r}"
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{prefix} is not a regular file")
            if entry.flag_bits & _LOCKED:
                raise DataError(
                    f"{prefix} is encrypted with a password; unpack it yourself (7z x asks for it) "
                    "and leave the folder next to the archive"
                )
            if entry.compress_type not in _METHODS:
                raise DataError(
                    f"{prefix} uses an unsupported compression method; unpack it yourself "
                    "(7z x) and leave the folder next to the archive"
                )
            member = Member(name, entry.file_size, entry.compress_size, entry.CRC)
            totals.add(member)
            if not entry.is_dir():
                files.append(member)
        self._refuse_overlap()
        return files

    def _refuse_overlap(self) -> None:
        """Refuse overlapping members: they let a small file unpack to a huge one."""
        entries = sorted(self._entries, key=lambda entry: entry.header_offset)
        start = self._start
        for entry in reversed(entries):
            if entry.header_offset + _HEADER + entry.compress_size > start:
                raise damaged(self.archive, f"member {entry.filename!r} overlaps another one")
            start = entry.header_offset

    def contents(self) -> Iterator[Content]:
        """Yield each file with a function that opens it."""
        for entry in self._entries:
            if not entry.is_dir():
                name = safe_name(entry.filename, self.archive)
                member = Member(name, entry.file_size, entry.compress_size, entry.CRC)
                yield Content(member, _seconds(entry), partial(self._opened.open, entry))


def _seconds(entry: zipfile.ZipInfo) -> int:
    """Return the modification time; zips store no time zone, so UTC is assumed."""
    try:
        return int(datetime(*entry.date_time, tzinfo=UTC).timestamp())
    except ValueError:  # some writers store month 0
        return _FIRST
