"""Generates toyland below a data folder."""

import os
from collections.abc import Callable
from pathlib import Path

from udaseg.data.toyland.writer import write
from udaseg.files import file_lock

TOYLAND_SIZE = (128, 256)


def make_toyland(
    root: Path,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write toyland below `root`, unless it already exists.

    Raises:
        DataError: It exists with another seed or size.
    """
    with file_lock(root / ".toyland.lock"):
        write(
            root / "toyland",
            seed=seed,
            size=size or TOYLAND_SIZE,
            workers=os.cpu_count() or 1,
            on_progress=on_progress,
        )
