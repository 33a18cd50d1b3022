"""Unpack dataset archives: checked first, only into the target folder, and resumable."""

import errno
import logging
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from udaseg import files
from udaseg.data.archives import members as checks
from udaseg.data.archives.members import Member, MemberContent
from udaseg.data.archives.tar import TarReader
from udaseg.data.archives.zip import ZipReader
from udaseg.errors import DataError
from udaseg.text import file_size

log = logging.getLogger(__name__)
_CHUNK_BYTES = 2**20
_MB = 10**6
_LOG_FROM_BYTES = 10**9
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_UNPACK_YOURSELF = "unpack it yourself ({how}) and leave the folder next to the archive"
_UNSUPPORTED = (("rar", b"Rar!\x1a\x07", "unrar x"), ("7z", b"7z\xbc\xaf\x27\x1c", "7z x"))

# Damaged archives raise any of these; errors of the machine are excluded by _MACHINE_ERRNOS.
_DAMAGE_ERRORS: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error)
_DAMAGE_ERRORS += (lzma.LZMAError, struct.error, OSError, EOFError, ValueError, NotImplementedError)
_DAMAGE_ERRORS += (RuntimeError, OverflowError, IndexError, KeyError)
_MACHINE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def unpack(
    archives: Sequence[Path], into: Path, on_unpack: Callable[[int, int], None] | None = None
) -> None:
    """Unpack zip and tar archives into the folder `into`.

    All archives are checked before the first file is written. On a data error the folder is
    removed. After a kill, an interrupt or a full disk it holds only complete files, and the next
    call resumes. Hidden files are skipped; files get the modification times stored in the archive.

    Args:
        archives: The archive files.
        into: Target folder; must contain nothing else.
        on_unpack: Called with the megabytes unpacked so far and in total.
    """
    report = on_unpack or (lambda *_: None)
    part = into.with_name(f"{into.name}.part")
    sizes: dict[str, int] = {}

    def missing_bytes() -> int:
        return sum(size for name, size in sizes.items() if not (into / name).is_file())

    try:
        lists = {archive: _checked_members(archive) for archive in archives}
        checks.refuse_conflicting_images(lists)
        sizes |= {member.name: member.size for members in lists.values() for member in members}
        if missing_bytes() > files.free_disk_space(into):
            raise files.disk_full(into, missing_bytes())
        done, total = 0, sum(map(_total_size, lists.values()))
        report(0, total // _MB)
        with files.disk_space(into, missing_bytes):
            for archive, members in lists.items():
                unpacked_size = file_size(_total_size(members))
                log.info("unpacking %s: %d files, %s", archive, len(members), unpacked_size)
                for member in _write(archive, into, part):
                    done += member.size
                    report(done // _MB, total // _MB)
        files.remove_other_files(into, set(sizes))  # left by a run with other archives
        part.unlink(missing_ok=True)
    except DataError:
        shutil.rmtree(into, ignore_errors=True)
        part.unlink(missing_ok=True)
        raise


def _total_size(members: Iterable[Member]) -> int:
    return sum(member.size for member in members)


def _checked_members(archive: Path) -> list[Member]:
    size = archive.stat().st_size
    if size > _LOG_FROM_BYTES:  # takes minutes if all of it has to be read
        log.info("checking %s (%s)", archive, file_size(size))
    with _damage_as_data_error(archive), closing(_open_reader(archive)) as reader:
        checked = checks.verify_checksum(archive)
        members = reader.members()
    if not members:
        raise DataError(f"{archive}: is empty; download it again")
    checks.refuse_name_clashes(archive, members)
    if isinstance(reader, TarReader) and not (reader.is_compressed or checked):
        log.warning(
            "%s: a tar has no checksums, and there is no %s.sha256 next to it; its sha256 is %s",
            archive,
            archive.name,
            files.sha256_of(archive),
        )
    return members


def _open_reader(archive: Path) -> ZipReader | TarReader:
    """Return a reader for the archive; raise a `DataError` with advice for an unsupported type."""
    suffix = archive.name.lower()
    with archive.open("rb") as file:
        head = file.read(_CHUNK_BYTES // 1024)
    for kind, start, how in _UNSUPPORTED:
        if head.startswith(start) or suffix.endswith(f".{kind}"):
            raise DataError(
                f"{archive}: {kind} archives are not supported; {_UNPACK_YOURSELF.format(how=how)}"
            )
    if head.lstrip().startswith(b"<"):
        raise DataError(
            f"{archive}: is a web page, not an archive; log in on the website, then download it "
            "again"
        )
    if suffix.endswith(".zip"):
        return ZipReader(archive)
    if suffix.endswith(_TAR_SUFFIXES):
        return TarReader(archive)
    raise DataError(
        f"{archive}: not a supported archive (zip or tar); " + _UNPACK_YOURSELF.format(how="7z x")
    )


@contextmanager
def _damage_as_data_error(archive: Path, member: str | None = None) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _DAMAGE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
            raise
        prefix = "" if member is None else f"member {member!r}: "
        raise checks.damaged_archive_error(archive, f"{prefix}{error}") from error


def _write(archive: Path, into: Path, part: Path) -> Iterator[Member]:
    """Write the missing members; each gets its final name only when it is complete."""
    with _damage_as_data_error(archive), closing(_open_reader(archive)) as reader:
        for content in reader.contents():
            target = into / content.member.name
            with _damage_as_data_error(archive, content.member.name):
                if not (content.member.hidden or _is_complete(target, content)):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copy(content, part)
                    part.replace(target)
            yield content.member


def _is_complete(target: Path, content: MemberContent) -> bool:
    """Return whether an earlier run wrote this file completely; compares the content."""
    if not target.is_file() or target.stat().st_size != content.member.size:
        return False
    with target.open("rb") as file:
        if content.member.crc is not None:
            crc = 0
            for piece in _chunks(file):
                crc = zlib.crc32(piece, crc)
            return crc == content.member.crc
        with content.open() as stream:
            return all(piece == file.read(len(piece)) for piece in _chunks(stream))


def _copy(content: MemberContent, part: Path) -> None:
    size = 0
    with content.open() as stream, part.open("wb") as file:
        for piece in _chunks(stream):
            size += len(piece)
            file.write(piece)
    if size != content.member.size:
        raise EOFError(f"has {size:,} bytes, not {content.member.size:,}")
    os.utime(part, (content.mtime, content.mtime))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(stream.read, _CHUNK_BYTES), b"")
