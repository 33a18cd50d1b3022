"""Files that a run holds: each read is compared with the file that the run started with."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

from udaseg.data.files.images import read_bytes
from udaseg.errors import DataChanged, DataError
from udaseg.files import file_stamp, sha256


class HeldFile(NamedTuple):
    """A file as it was.

    Attributes:
        stamp: Size and time, see `file_stamp`; empty to compare the content at each read.
        sha256: Digest of its content; empty if it could not be read.
        when: When it was so, for messages.
    """

    stamp: str
    sha256: str
    when: str


HeldFiles = MutableMapping[str, HeldFile]
"""Files that are held, by path."""


def hold_now(path: Path) -> HeldFile:
    """Return a file as it is now; reads it."""
    stamp = file_stamp(path)  # before reading, so that a later change is noticed
    try:
        digest = sha256(read_bytes(path))
    except DataError:
        digest = ""
    return HeldFile(stamp, digest, "when the run started")


def read_held(path: Path, held: HeldFiles) -> bytes:
    """Return the content of a file, which must be as it is held; others are only read.

    Size and time are compared, and the content only where these differ: a copy is no change.

    Raises:
        DataChanged: The file has another content, or is gone.
        DataError: The file cannot be read.
    """
    known = held.get(str(path))
    if known is None:
        return read_bytes(path)
    try:
        data = read_bytes(path)
    except DataError as error:
        if not known.sha256 or file_stamp(path) == known.stamp:
            raise
        was = "it was there" if not path.exists() else "it was another file"
        raise DataChanged(f"{error}; {was} {known.when}") from error
    # after reading, so that no change during the read is missed
    if (stamp := file_stamp(path)) != known.stamp:
        if sha256(data) != known.sha256:
            raise DataChanged(f"{path}: is not the file that it was {known.when}")
        if known.stamp:
            held[str(path)] = known._replace(stamp=stamp)
    return data
