"""What an archive holds, judged by its list of members before anything is written."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from udaseg.data.images import IMAGE_SUFFIXES
from udaseg.errors import DataError

MAX_MEMBERS = 300_000
"""The largest set here has 100,000 files, and a list of this many takes 300 MB of memory."""

MAX_NAME = 1024
MAX_PART = 255
"""Bytes of a member's name and of a folder in it; file systems take no more."""

_MAX_TOTAL = 200 * 2**30
_MAX_MEMBER = 4 * 2**30
_MAX_RATIO = 200
_MEMBER_FROM = 2**20
_TOTAL_FROM = 2**26


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Its path below the folder that it is unpacked into, POSIX style.
        size: Unpacked, in bytes, as the archive says.
        packed: Packed, likewise; 0 where members are not packed one by one.
        crc: Checksum of its content; None where there is none.
    """

    name: str
    size: int
    packed: int = 0
    crc: int | None = None

    @property
    def hidden(self) -> bool:
        """Whether no glob finds it, like the `._` files that some archives bring."""
        return any(part.startswith(".") for part in self.name.split("/"))


@dataclass(frozen=True, slots=True)
class Content:
    """A member that can be read.

    Attributes:
        member: What it is.
        seconds: Its time of change, since 1970.
        open: Opens its content.
    """

    member: Member
    seconds: int
    open: Callable[[], IO[bytes]]


def damaged(archive: Path, what: str) -> DataError:
    """Return what to say about an archive that is not as it was made."""
    return DataError(f"{archive}: damaged: {what}; download it again")


def safe_name(name: str, archive: Path) -> str:
    """Return the member's path below the target folder, POSIX style.

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
    raw = [part.encode(errors="surrogateescape") for part in path.parts]
    if len(name) > MAX_NAME or sum(map(len, raw)) > MAX_NAME or max(map(len, raw)) > MAX_PART:
        raise DataError(
            f"{archive}: member {name[:60]!r}... has a name of {len(name):,} characters; "
            "nothing was unpacked"
        )
    return path.as_posix()


class Totals:
    """Sums over the members of an archive, refused as soon as they are too large.

    Args:
        archive: The file.
    """

    def __init__(self, archive: Path) -> None:
        self.archive, self.packed = archive, archive.stat().st_size
        self.members, self.size = 0, 0

    def add(self, member: Member) -> None:
        """Count a member.

        Raises:
            DataError: It is too large, grows too much, or is one too many.
        """
        if member.size < 0:
            raise damaged(self.archive, f"member {member.name!r} has a negative size")
        self.members += 1
        self.size += member.size
        refuse_number(self.archive, self.members)
        if self.size > _MAX_TOTAL:
            raise DataError(f"{self.archive}: unpacked it is larger than 200 GB")
        if member.size > _MAX_MEMBER:
            raise DataError(f"{self.archive}: member {member.name!r} is larger than 4 GB")
        grown = member.packed and member.size > _MAX_RATIO * member.packed
        if grown and member.size > _MEMBER_FROM:
            raise DataError(
                f"{self.archive}: member {member.name!r} grows more than {_MAX_RATIO} times"
            )
        if self.size > max(_TOTAL_FROM, _MAX_RATIO * self.packed):
            raise DataError(f"{self.archive}: grows more than {_MAX_RATIO} times")


def refuse_number(archive: Path, members: int) -> None:
    """Refuse more members than any set has.

    Raises:
        DataError: There are more.
    """
    if members > MAX_MEMBERS:
        raise DataError(f"{archive}: more than {MAX_MEMBERS:,} members; unpack it yourself")


def refuse_clashes(archive: Path, members: Iterable[Member]) -> None:
    """Refuse members that some file system takes for the same file, or for a file and a folder.

    Raises:
        DataError: There are such; names both.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for member in members:
        key = unicodedata.normalize("NFC", member.name).casefold()
        if key in files:
            raise DataError(f"{archive}: {files[key]!r} and {member.name!r} are the same file")
        files[key] = member.name
        folder = key.rpartition("/")[0]
        while folder and folder not in folders:
            folders[folder] = member.name
            folder = folder.rpartition("/")[0]
    for key in files.keys() & folders.keys():
        raise DataError(f"{archive}: {files[key]!r} is a file, but {folders[key]!r} lies in it")


def refuse_contradictions(lists: Mapping[Path, Iterable[Member]]) -> None:
    """Refuse archives of one set that hold an image under one name with another content.

    Args:
        lists: The members of each archive.

    Raises:
        DataError: There are such; names both archives.
    """
    if len(lists) < 2:
        return
    seen: dict[str, tuple[Path, Member]] = {}
    for archive, members in lists.items():
        for member in members:
            if not member.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            other, before = seen.setdefault(member.name, (archive, member))
            both = (before.crc, member.crc)
            if before.size != member.size or (None not in both and both[0] != both[1]):
                raise DataError(
                    f"{other} and {archive} hold different files {member.name!r}; "
                    "leave one of the archives here"
                )
