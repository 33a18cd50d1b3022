"""Validate the member list of an archive before anything is written."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.errors import DataError

MAX_MEMBERS = 300_000
"""The largest built-in dataset has 100,000 files; a list of this length takes 300 MB of memory."""

# bytes of a member's name and of each part of it; file systems accept no more
_MAX_NAME = 1024
_MAX_NAME_PART = 255
_MAX_TOTAL = 200 * 2**30
_MAX_MEMBER = 4 * 2**30
_MAX_RATIO = 200
_MIN_MEMBER_FOR_RATIO = 2**20
_MIN_TOTAL_FOR_RATIO = 2**26


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Path below the target folder, POSIX style.
        size: Uncompressed size in bytes, as the archive states it.
        compressed_size: Compressed size in bytes; 0 if members are not compressed one by one.
        crc: CRC-32 of the content; None if the archive stores none.
    """

    name: str
    size: int
    compressed_size: int = 0
    crc: int | None = None

    @property
    def hidden(self) -> bool:
        """Whether globs skip it, like the `._` files in some archives."""
        return any(part.startswith(".") for part in self.name.split("/"))


@dataclass(frozen=True, slots=True)
class MemberContent:
    """A member whose content can be opened; `mtime` is in seconds since 1970."""

    member: Member
    mtime: int
    open: Callable[[], IO[bytes]]


def damaged_archive_error(archive: Path, problem: str) -> DataError:
    """Return the error for a damaged archive."""
    return DataError(f"{archive}: damaged: {problem}; download it again")


def safe_member_path(name: str, archive: Path) -> str:
    """Return the member's path below the target folder, POSIX style; refuse any other path."""
    path = PurePosixPath(name)
    is_unsafe = path.is_absolute() or ".." in path.parts or not path.parts or name[1:2] == ":"
    if is_unsafe or "\0" in name or "\\" in name:
        raise DataError(
            f"{archive}: member {name!r} would be written outside the target folder; "
            "nothing was unpacked"
        )
    sizes = [len(part.encode(errors="surrogateescape")) for part in path.parts]
    if max(len(name), sum(sizes)) > _MAX_NAME or max(sizes) > _MAX_NAME_PART:
        raise DataError(
            f"{archive}: member {name[:60]!r}... has a name of {len(name):,} characters; "
            "nothing was unpacked"
        )
    return path.as_posix()


class MemberTotals:
    """Count the members of an archive and their bytes; raise as soon as a limit is exceeded."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.compressed_size = archive, archive.stat().st_size
        self.members, self.size = 0, 0

    def add(self, member: Member) -> None:
        """Add a member; raise if number, size or compression ratio exceed a limit."""
        if member.size < 0:
            raise damaged_archive_error(self.archive, f"member {member.name!r} has a negative size")
        self.members += 1
        self.size += member.size
        refuse_too_many_members(self.archive, self.members)
        if self.size > _MAX_TOTAL:
            raise DataError(f"{self.archive}: larger than 200 GB when unpacked")
        if member.size > _MAX_MEMBER:
            raise DataError(f"{self.archive}: member {member.name!r} is larger than 4 GB")
        large_ratio = member.compressed_size and member.size > _MAX_RATIO * member.compressed_size
        if large_ratio and member.size > _MIN_MEMBER_FOR_RATIO:
            raise DataError(
                f"{self.archive}: member {member.name!r} expands to more than {_MAX_RATIO} times "
                "its compressed size"
            )
        if self.size > max(_MIN_TOTAL_FOR_RATIO, _MAX_RATIO * self.compressed_size):
            raise DataError(
                f"{self.archive}: expands to more than {_MAX_RATIO} times its compressed size"
            )


def refuse_too_many_members(archive: Path, members: int) -> None:
    """Raise a `DataError` for more members than any dataset has."""
    if members > MAX_MEMBERS:
        raise DataError(f"{archive}: more than {MAX_MEMBERS:,} members; unpack it yourself")


def refuse_name_clashes(archive: Path, members: Iterable[Member]) -> None:
    """Raise a `DataError` if two members clash on some file system.

    They clash if their names differ only in case or Unicode form, or if one is a file and another
    is inside a folder of that name.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for member in members:
        key = unicodedata.normalize("NFC", member.name).casefold()
        if key in files:
            raise DataError(f"{archive}: {files[key]!r} and {member.name!r} name the same file")
        files[key] = member.name
        folder = key.rpartition("/")[0]
        while folder and folder not in folders:
            folders[folder] = member.name
            folder = folder.rpartition("/")[0]
    for key in files.keys() & folders.keys():
        raise DataError(f"{archive}: {files[key]!r} is a file, but {folders[key]!r} is inside it")


def refuse_conflicting_images(lists: Mapping[Path, Iterable[Member]]) -> None:
    """Raise a `DataError` if two archives hold different images under the same name."""
    first_seen: dict[str, tuple[Path, Member]] = {}
    for archive, members in lists.items():
        for member in members:
            if not member.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            other, earlier = first_seen.setdefault(member.name, (archive, member))
            same_content = None in (earlier.crc, member.crc) or earlier.crc == member.crc
            if earlier.size != member.size or not same_content:
                raise DataError(
                    f"{other} and {archive} contain different files named {member.name!r}; "
                    "keep only one of the archives"
                )


_LIST_NAMES = ("SHA256SUMS", "sha256sums.txt", "MD5SUMS", "md5sums.txt")
_ALGORITHM_BY_DIGITS = {64: "sha256", 40: "sha1", 32: "md5"}
_LINE = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{40}|[0-9a-fA-F]{32})(?:\s+\*?(.+))?")
_MAX_LIST_BYTES = 2**20


def verify_checksum(archive: Path) -> bool:
    """Verify the checksums next to an archive: `NAME.sha256`, `NAME.md5`, `SHA256SUMS`.

    Returns:
        Whether a checksum exists.
    """
    expected = dict.fromkeys(_listed_checksums(archive))
    for path, digest in expected:
        kind = _ALGORITHM_BY_DIGITS[len(digest)]
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, kind).hexdigest()
        if actual != digest:
            raise DataError(
                f"{archive}: {kind} is {actual}, but {path.name} lists {digest}; download it again"
            )
    return bool(expected)


def _listed_checksums(archive: Path) -> Iterator[tuple[Path, str]]:
    """Yield each checksum listed for `archive`, with the file that lists it."""
    own_lists = [f"{archive.name}.{kind}" for kind in _ALGORITHM_BY_DIGITS.values()]
    for list_name in (*own_lists, *_LIST_NAMES):
        path = archive.with_name(list_name)
        if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _LINE.fullmatch(line.strip()):
                # a line without a name is about the archive that the list is named after
                name = Path(match[2]).name if match[2] else path.stem
                if name == archive.name:
                    yield path, match[1].lower()
