"""Unpacking dataset archives: checked first, never outside the folder, all or nothing."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from udaseg.errors import DataError

_MAX_MEMBERS = 500_000
_MAX_TOTAL = 200 * 2**30
_MAX_MEMBER = 4 * 2**30
_MAX_RATIO = 200
_RATIO_FROM = 2**20
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError),
)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a zip or tar into the folder `into`, which appears complete or not at all.

    Raises:
        DataError: Unknown kind, damaged, too large, or a member that would land outside.
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
        if suffix.endswith(".zip"):
            _unpack_zip(archive, temporary)
        elif suffix.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")):
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


def _unpack_zip(archive: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                safe_name(member.filename, archive)
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{archive}: member {member.filename!r} is no plain file")
            sizes = [(m.filename, m.file_size, m.compress_size) for m in members]
            _check_sizes(archive, sizes)
            _check_names(archive, [m.filename for m in members if not m.is_dir()])
            for member in members:
                opened.extract(member, into)
    except DataError:
        raise
    except _ZIP_FAULTS as error:
        raise DataError(f"{archive}: damaged or unreadable: {error}") from error


def _unpack_tar(archive: Path, into: Path) -> None:
    try:
        with tarfile.open(archive) as opened:
            members = list(_plain_members(opened, archive))
            _check_sizes(archive, [(member.name, member.size, 0) for member in members])
            _check_names(archive, [member.name for member in members if member.isfile()])
            for member in members:
                opened.extract(member, into, filter="data")
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged or unreadable: {error}") from error


def _plain_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    for member in opened:
        safe_name(member.name, archive)
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{archive}: member {member.name!r} is a link or a device")
        yield member


def _check_sizes(archive: Path, sizes: list[tuple[str, int, int]]) -> None:
    if not sizes:
        raise DataError(f"{archive}: is empty")
    if len(sizes) > _MAX_MEMBERS or sum(size for _, size, _ in sizes) > _MAX_TOTAL:
        raise DataError(f"{archive}: more than {_MAX_MEMBERS:,} members or 200 GB")
    for name, size, packed in sizes:
        if size > _MAX_MEMBER:
            raise DataError(f"{archive}: member {name!r} is larger than 4 GB")
        if packed and size > _RATIO_FROM and size / packed > _MAX_RATIO:
            raise DataError(f"{archive}: member {name!r} grows more than {_MAX_RATIO} times")


def _check_names(archive: Path, names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = name.casefold()
        if key in seen:
            raise DataError(f"{archive}: {seen[key]!r} and {name!r} are the same file")
        seen[key] = name
