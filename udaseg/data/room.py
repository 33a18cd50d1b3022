"""No room on the disk: how much is missing, and that the same command goes on afterwards."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from udaseg.errors import EnvironmentFault

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room(where: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Say how much is missing when the disk becomes full meanwhile.

    Args:
        where: A folder on that disk.
        needed: Returns the bytes that are still to be written, as far as one can know.

    Raises:
        EnvironmentFault: It became full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise no_room(where, needed()) from error


def no_room(where: Path, needed: int) -> EnvironmentFault:
    """Return what to say when `needed` more bytes do not fit on the disk of `where`."""
    return EnvironmentFault(
        f"{where}: the disk is full: about {amount(needed)} are still to be written, "
        f"{amount(free(where))} are free; free some space and run the same command again, "
        "what is done is kept"
    )


def free(where: Path) -> int:
    """Return the bytes that are free on the disk of `where`, which need not exist yet."""
    while not where.exists():
        where = where.parent
    return shutil.disk_usage(where).free


def amount(size: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
