"""Checkpoints of a run that are kept: those that a criterion chose, and that of the warm-up.

They are in folders of their own, `checkpoints/best-NAME/` and `checkpoints/warm_up/`.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from udaseg.files import read_json
from udaseg.runs.records import Best

BEST_RECORD = "best.json"


def best_folder(run: Path, criterion: str) -> Path:
    """Return the folder of a run's best checkpoint by a criterion."""
    return run / "checkpoints" / f"best-{criterion}"


def warm_up_folder(run: Path) -> Path:
    """Return the folder of the checkpoint at the end of a run's warm-up on the source alone.

    It exists once a run with `method.warm_up`, or one of AdaBN, has done these steps.
    """
    return run / "checkpoints" / "warm_up"


def read_record(run: Path, criterion: str) -> dict[str, Any]:
    """Return `best.json`: the values of all compared checkpoints, and which one is kept."""
    stored = read_json(best_folder(run, criterion) / BEST_RECORD, Best)
    return {"criterion": criterion, "steps": stored.get("steps", {})}


def store_best(run: Path, name: str, checkpoint: Path) -> Path:
    """Replace the content of `checkpoints/best-<name>` by a checkpoint; return the folder."""
    folder = best_folder(run, name)
    place_checkpoint(checkpoint, folder)
    drop_other_checkpoints(checkpoint, folder)
    return folder


def place_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Link or copy a checkpoint and its manifest into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # the manifest comes last: a checkpoint without a manifest is incomplete
    for file in (checkpoint, checkpoint.with_suffix(".json")):
        _link_or_copy(file, folder / file.name)


def drop_other_checkpoints(checkpoint: Path, folder: Path) -> None:
    """Delete all checkpoints in `folder` but the one with the name of `checkpoint`."""
    for file in folder.glob("step-*"):
        if file.stem != checkpoint.stem:
            file.unlink()


def _link_or_copy(path: Path, target: Path) -> None:
    """Hard-link `target` to the file, or copy it if the file system has no links."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(target)
