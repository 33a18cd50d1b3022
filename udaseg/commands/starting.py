"""Store which checkpoint a run starts from with `--init`, until it has its own checkpoint."""

from pathlib import Path
from typing import Any

from udaseg.engine import Checkpoint, load, manifests, sha256_of
from udaseg.errors import CheckpointError
from udaseg.reporting import read_json

START = "init.json"


def start_document(init: Checkpoint) -> dict[str, Any]:
    """Return the content of a run's `init.json`: file, SHA-256 and step."""
    return {
        "checkpoint": str(init.path.absolute()),
        "sha256": init.sha256,
        "step": init.step,
    }


def start_of(folder: Path) -> Checkpoint | None:
    """Return the `--init` checkpoint of a run that is resumed.

    None if the run starts from its recipe's weights, or has its own checkpoint.

    Raises:
        CheckpointError: The file is missing, or has changed.
    """
    if not (folder / START).is_file() or manifests(folder / "checkpoints"):
        return None
    stored = read_json(folder / START)
    if not {"checkpoint", "sha256"} <= stored.keys():
        raise CheckpointError(
            f"{folder / START}: is damaged, so the initial checkpoint is unknown; start again "
            "with --overwrite and --init"
        )
    path, digest = Path(str(stored["checkpoint"])), stored["sha256"]
    try:
        problem = None if sha256_of(path) == digest else "has changed"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem is not None:
        raise CheckpointError(
            f"{folder}: the run started from {path} (--init) and has no checkpoint yet, but that "
            f"file {problem}; restore the one with SHA-256 {digest}, or start again with "
            "--overwrite and another --init"
        )
    return load(path)
