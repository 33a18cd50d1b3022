"""What a run starts from with `--init`, kept in its folder for as long as it has no checkpoint."""

from pathlib import Path
from typing import Any

from udaseg.engine import Checkpoint, load, manifests, sha256_of
from udaseg.errors import CheckpointError
from udaseg.reporting import read_json

START = "init.json"


def start_document(init: Checkpoint) -> dict[str, Any]:
    """Return what a run's `init.json` says: the file, its SHA-256 as it was read, and its step."""
    return {
        "checkpoint": str(init.path.absolute()),
        "sha256": init.sha256,
        "step": init.step,
    }


def start_of(folder: Path) -> Checkpoint | None:
    """Return what a run that is to be resumed starts from.

    None where it starts from its recipe's weights, or goes on from a checkpoint of its own.

    Raises:
        CheckpointError: The file is gone, or is another one by now.
    """
    if not (folder / START).is_file() or manifests(folder / "checkpoints"):
        return None
    known = read_json(folder / START)
    if not {"checkpoint", "sha256"} <= known.keys():
        raise CheckpointError(
            f"{folder / START}: is damaged, so what the run began from is not known; begin again "
            "with --overwrite and --init"
        )
    path, digest = Path(str(known["checkpoint"])), known["sha256"]
    try:
        trouble = None if sha256_of(path) == digest else "holds other bytes now"
    except OSError as error:
        trouble = f"cannot be read any more ({error.strerror})"
    if trouble is not None:
        raise CheckpointError(
            f"{folder}: the run began from {path} (--init) and has no checkpoint of its own yet, "
            f"but that file {trouble}; put back the one with SHA-256 {digest}, or begin again with "
            "--overwrite and another --init"
        )
    return load(path)
