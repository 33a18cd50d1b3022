"""What a rename makes visible is synced to the disk before, lest power fails in between."""

import contextlib
import os
from pathlib import Path


def written_out() -> None:
    """Have the disk hold all that was written so far.

    One call for any number of files; an fsync of each would take milliseconds for each.
    """
    if hasattr(os, "sync"):  # Windows has none
        os.sync()


def moved(source: Path, target: Path) -> None:
    """Rename a file or a folder whose content is on the disk, and have the disk hold that too."""
    source.rename(target)
    _entries_written_out(target.parent)


def _entries_written_out(folder: Path) -> None:
    # some file systems, and Windows, cannot do so for a folder
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
