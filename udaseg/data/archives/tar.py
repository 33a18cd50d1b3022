"""Read tar archives, compressed or not: a validated member list and the content of each file."""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from udaseg.data.archives import members as checks
from udaseg.data.archives.members import Member, MemberContent
from udaseg.errors import DataError

_BLOCK = 512
_MAX_READ = 2**20
_MAX_PADDING = 2**22
_MAX_MTIME = 2**32
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class TarReader:
    """An open tar archive: uncompressed, or compressed with gzip, bzip2 or xz."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        with ExitStack() as stack:
            raw = stack.enter_context(archive.open("rb"))
            head = raw.read(6)
            raw.seek(0)
            stream: IO[bytes] = raw
            for start, open_stream in _DECOMPRESSORS.items():
                if head.startswith(start):
                    stream = stack.enter_context(open_stream(raw))
            self.is_compressed = stream is not raw
            self._stream = _BoundedReader(archive, stream)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def members(self) -> list[Member]:
        """Read the archive to its end and return all files; refuse unsafe members."""
        files, totals, end = [], checks.MemberTotals(self.archive), 0
        for _, entry in self._entries():
            member = Member(checks.safe_member_path(entry.name, self.archive), entry.size)
            if not (entry.isfile() or entry.isdir()) or entry.issparse():
                raise DataError(
                    f"{self.archive}: member {entry.name!r} is a link or a device, not a regular "
                    "file"
                )
            totals.add(member)
            end = entry.offset_data + -(-entry.size // _BLOCK) * _BLOCK
            if entry.isfile():
                files.append(member)
        self._refuse_truncated(end)
        return files

    def contents(self) -> Iterator[MemberContent]:
        """Yield each file; its content must be read before the next one is requested."""
        for opened, entry in self._entries():
            if entry.isfile():
                member = Member(checks.safe_member_path(entry.name, self.archive), entry.size)
                mtime = min(max(0, int(entry.mtime)), _MAX_MTIME)
                # only of a link is there none, and links were refused
                content = cast("Callable[[], IO[bytes]]", partial(opened.extractfile, entry))
                yield MemberContent(member, mtime, content)

    def _entries(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        self._stream.seek(0)
        stream = cast("IO[bytes]", self._stream)  # all that tarfile calls is there
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            while (entry := opened.next()) is not None:
                # a list of a million members takes a gigabyte
                opened.members.clear()  # type: ignore[attr-defined]  # public, but not in the stubs
                # `tar cf x.tar .` starts with an entry for the folder itself
                if not (entry.isdir() and entry.name in (".", "./")):
                    yield opened, entry

    def _refuse_truncated(self, end: int) -> None:
        """Refuse a tar without an end block; one cut between two members unpacks without error."""
        self._stream.seek(end)
        if self._stream.read(_BLOCK) != bytes(_BLOCK):
            raise checks.damaged_archive_error(self.archive, "it is cut off")
        # read on to the checksum that a compressed stream has after the tar data
        padding = 0
        while piece := self._stream.read(_MAX_READ):
            padding += len(piece)
            if any(piece):
                raise checks.damaged_archive_error(self.archive, "there is data after its end")
            if padding > _MAX_PADDING:
                problem = f"more than {_MAX_PADDING:,} zero bytes at its end"
                raise checks.damaged_archive_error(
                    self.archive, f"{problem}: the download is cut off"
                )


class _BoundedReader:
    """A stream that refuses large reads, such as a member name of a gigabyte."""

    def __init__(self, archive: Path, stream: IO[bytes]) -> None:
        self._archive, self._stream = archive, stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise DataError(
                f"{self._archive}: a member's name or header has {size:,} bytes; "
                f"at most {_MAX_READ:,} are read"
            )
        return self._stream.read(size)
