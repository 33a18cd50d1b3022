"""Errors for a full disk: how much is missing, and that the same command can be repeated."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from udaseg.errors import EnvironmentFault

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Raise an error that names the missing amount if the disk becomes full in this context.

    Args:
        folder: A folder on that disk.
        needed: Returns an estimate of the bytes that are still to be written.

    Raises:
        EnvironmentFault: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise no_room(folder, needed()) from error


def no_room(folder: Path, needed: int) -> EnvironmentFault:
    """Return the error for `needed` more bytes that do not fit on the disk of `folder`."""
    return EnvironmentFault(
        f"{folder}: the disk is full: about {amount(needed)} are still to be written, "
        f"{amount(free(folder))} are free; free some space and run the same command again, "
        "finished work is kept"
    )


def free(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def amount(size: int) -> str:
    """Return a number of bytes in readable form, such as 1.5 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
