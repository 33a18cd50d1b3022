"""Read and write `calibration.json`, the fitted confidence temperatures of a run."""

import json
from pathlib import Path
from typing import Any

from udaseg.errors import DataError
from udaseg.files import sha256_of, write_json
from udaseg.runs.folder import run_folder_of

_FILE_NAME = "calibration.json"


def calibration_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's calibration: in its run, else next to it."""
    return run_folder_of(checkpoint) / _FILE_NAME


def checkpoint_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint from its manifest, which was checked on load."""
    try:
        manifest = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
        return str(manifest["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return sha256_of(checkpoint)


def write_calibration(checkpoint: Path, weights: str, facts: dict[str, Any]) -> Path:
    """Store `facts` for a checkpoint's `weights`; entries of the other weights stay.

    Args:
        checkpoint: The calibrated checkpoint file.
        weights: `student` or `teacher`.
        facts: `temperature` and the details of its fit.

    Returns:
        The path of the file.
    """
    path = calibration_path(checkpoint)
    try:
        entries = _read(path)
    except DataError:  # a damaged file is replaced
        entries = {}
    identity = {"checkpoint": checkpoint.name, "sha256": checkpoint_digest(checkpoint)}
    write_json(path, {**entries, weights: {**identity, **facts}})
    return path


def read_temperature(checkpoint: Path, weights: str) -> float | None:
    """Return the temperature fitted to a checkpoint's `weights`; None if there is none.

    Raises:
        DataError: The file is damaged, or belongs to another checkpoint.
    """
    path = calibration_path(checkpoint)
    facts = _read(path).get(weights)
    if facts is None:
        return None
    hint = f"run `udaseg calibrate {checkpoint}` again, or use --uncalibrated"
    if not isinstance(facts, dict) or not _is_temperature(facts.get("temperature")):
        raise DataError(f"{path}: damaged, no temperature of the {weights}; {hint}")
    if facts.get("sha256") != checkpoint_digest(checkpoint):
        raise DataError(
            f"{path}: was fitted to {facts.get('checkpoint')}, "
            f"which differs from the current {checkpoint.name}; {hint}"
        )
    return float(facts["temperature"])


def _is_temperature(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < 1000


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); run `udaseg calibrate` again, or use --uncalibrated"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: damaged; run `udaseg calibrate` again")
    return document
