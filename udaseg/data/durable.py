"""Sync files to disk before a rename makes them visible, so that a power loss is harmless."""

import contextlib
import os
from pathlib import Path


def written_out() -> None:
    """Sync all written data to disk.

    One call covers any number of files; an fsync would take milliseconds per file.
    """
    if hasattr(os, "sync"):  # Windows has none
        os.sync()


def moved(source: Path, target: Path) -> None:
    """Rename a file or folder whose content is already on disk, and sync the rename as well."""
    source.rename(target)
    _entries_written_out(target.parent)


def _entries_written_out(folder: Path) -> None:
    # Windows and some file systems cannot sync a folder
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
