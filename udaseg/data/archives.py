"""Unpacking dataset archives: checked first, never outside the folder, all or nothing."""

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from udaseg.errors import DataError, EnvironmentFault

_MAX_MEMBERS = 500_000
_MAX_TOTAL = 200 * 2**30
_MAX_MEMBER = 4 * 2**30
_MAX_RATIO = 200
_RATIO_FROM = 2**20
_BLOCK = 512
_PIECE = 2**20
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")

# Damaged archives raise all of these; what the machine cannot do is not among them.
_FAULTS: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error)
_FAULTS += (lzma.LZMAError, struct.error, OSError, EOFError, ValueError, NotImplementedError)
_FAULTS += (RuntimeError, OverflowError, IndexError, KeyError)
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a zip or tar into the folder `into`, which appears complete or not at all.

    Raises:
        DataError: Unknown kind, damaged, too large, or a member that would land outside.
        EnvironmentFault: Not enough room on the disk.
    """
    suffix = archive.name.lower()
    if suffix.endswith((".rar", ".7z")):
        raise DataError(
            f"{archive}: unpack it yourself (unrar x, or 7z x) and leave the folder beside it"
        )
    temporary = into.with_name(f".{into.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _named_faults(archive):
            if suffix.endswith(".zip"):
                _unpack_zip(archive, temporary)
            elif suffix.endswith(_TARS):
                _unpack_tar(archive, temporary)
            else:
                raise DataError(f"{archive}: not an archive that can be unpacked (zip or tar)")
        temporary.rename(into)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def safe_name(name: str, archive: Path) -> PurePosixPath:
    """Return the member's path below the target folder.

    Raises:
        DataError: It would land outside, or is no proper name.
    """
    path = PurePosixPath(name)
    bad = (
        not name
        or "\0" in name
        or "\\" in name
        or path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or (len(name) > 1 and name[1] == ":")
    )
    if bad:
        raise DataError(f"{archive}: member {name!r} would land outside; nothing was unpacked")
    return path


@contextmanager
def _named_faults(archive: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        raise DataError(f"{archive}: damaged or unreadable: {error}") from error


def _unpack_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            # ZipFile cuts names at a zero byte; the name as it was stored is what is judged
            safe_name(member.orig_filename, archive)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: member {member.filename!r} is no plain file")
        sizes = [(m.filename, m.file_size, m.compress_size) for m in members]
        _check_sizes(archive, sizes, into)
        _check_names(archive, ((m.filename, m.is_dir()) for m in members))
        for member in members:
            opened.extract(member, into)


def _unpack_tar(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as opened:
        members = list(_plain_members(opened, archive))
        _check_sizes(archive, [(member.name, member.size, 0) for member in members], into)
        _check_names(archive, ((member.name, member.isdir()) for member in members))
        for member in members:
            opened.extract(member, into, filter="data")
        _refuse_cut(opened, archive, members)  # last: in a compressed file, going back is slow


def _plain_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(opened):
        if number >= _MAX_MEMBERS:
            raise DataError(f"{archive}: more than {_MAX_MEMBERS:,} members")
        if member.isdir() and member.name in (".", "./"):
            continue  # `tar cf x.tar .` begins with the folder itself
        safe_name(member.name, archive)
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{archive}: member {member.name!r} is a link or a device")
        yield member


def _refuse_cut(opened: tarfile.TarFile, archive: Path, members: list[tarfile.TarInfo]) -> None:
    """Refuse a tar without its end; cut between two members, it unpacks without a complaint."""
    assert opened.fileobj is not None
    last = members[-1] if members else None
    end = 0 if last is None else last.offset_data + -(-last.size // _BLOCK) * _BLOCK
    opened.fileobj.seek(end)
    if opened.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(f"{archive}: damaged or unreadable: it is cut off")
    while opened.fileobj.read(_PIECE):  # to the checksum behind it, where there is one
        pass


def _check_sizes(archive: Path, sizes: list[tuple[str, int, int]], into: Path) -> None:
    if not sizes:
        raise DataError(f"{archive}: is empty")
    total = sum(size for _, size, _ in sizes)
    if len(sizes) > _MAX_MEMBERS or total > _MAX_TOTAL:
        raise DataError(f"{archive}: more than {_MAX_MEMBERS:,} members or 200 GB")
    for name, size, packed in sizes:
        if size > _MAX_MEMBER:
            raise DataError(f"{archive}: member {name!r} is larger than 4 GB")
        if packed and size > _RATIO_FROM and size / packed > _MAX_RATIO:
            raise DataError(f"{archive}: member {name!r} grows more than {_MAX_RATIO} times")
    free = shutil.disk_usage(into).free
    if total > free:
        raise EnvironmentFault(
            f"{archive}: unpacked it needs {total / 1e9:.1f} GB, but {into.parent} has "
            f"{free / 1e9:.1f} GB free"
        )


def _check_names(archive: Path, names: Iterable[tuple[str, bool]]) -> None:
    """Refuse members that some file system takes for the same file."""
    seen: dict[str, str] = {}
    for name, is_folder in names:
        key = unicodedata.normalize("NFC", name.rstrip("/")).casefold()
        if not is_folder and key in seen:
            raise DataError(f"{archive}: {seen[key]!r} and {name!r} are the same file")
        if not is_folder:
            seen[key] = name
