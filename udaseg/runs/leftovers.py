"""Remove what killed commands left in a run folder."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from udaseg.files import TEMPORARY_NAME, shared_folder

_WRITTEN = (
    "eval/*",
    "features/*",
    "previews",
    "stages/*",
    "stages/*/pseudo_labels",
    "checkpoints/best-*",
    "checkpoints/warm_up",
)
"""Folders below a run that hold files from `udaseg.files`, or links to checkpoints."""

_LEFTOVER = re.compile(
    rf"{TEMPORARY_NAME.pattern}|\.export-[a-z0-9_]{{8}}|step-[0-9]+\.(pt|json)\.tmp"
)


@contextlib.contextmanager
def writing_in_run(run: Path) -> Iterator[None]:
    """Share a run folder with other commands that write to it.

    If there are none, first remove the temporary files of commands that were killed. In a folder
    that is not a run nothing is removed.
    """
    with shared_folder(run, partial(_remove_leftovers, run)):
        yield


def _remove_leftovers(run: Path) -> None:
    if not (run / "recipe.yaml").is_file():
        return
    below = (folder for pattern in _WRITTEN for folder in run.glob(f"{pattern}/"))
    for folder in (run, *below):
        for entry in list(folder.iterdir()):
            if _LEFTOVER.fullmatch(entry.name) is None:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
