"""`calibration.json` of a run: the temperature of its confidence, and which network it is for."""

import json
from pathlib import Path
from typing import Any

from udaseg.commands.run_folder import run_of
from udaseg.engine import sha256_of
from udaseg.errors import DataError
from udaseg.recipe import printable
from udaseg.reporting import write_json_atomic

_NAME = "calibration.json"


def file_of(checkpoint: Path) -> Path:
    """Return where the calibration of a checkpoint lies: in its run, else beside it."""
    return run_of(checkpoint) / _NAME


def digest_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint; its manifest has it, checked when it was loaded."""
    try:
        manifest = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
        return str(manifest["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return sha256_of(checkpoint)


def write_calibration(checkpoint: Path, weights: str, facts: dict[str, Any]) -> Path:
    """Keep `facts` for a checkpoint's `weights`; those of the other weights stay.

    Args:
        checkpoint: The file that was calibrated.
        weights: `student` or `teacher`.
        facts: `temperature` and how it was found.

    Returns:
        The file.
    """
    path = file_of(checkpoint)
    try:
        kept = _read(path)
    except DataError:  # it is written anew, so what was wrong with it does not matter
        kept = {}
    named = {"checkpoint": checkpoint.name, "sha256": digest_of(checkpoint)}
    write_json_atomic(path, {**kept, weights: {**named, **facts}})
    return path


def read_temperature(checkpoint: Path, weights: str) -> float | None:
    """Return the temperature fitted to a checkpoint's `weights`; None where nobody fitted one.

    Raises:
        DataError: The file is damaged, or was made for another checkpoint.
    """
    path = file_of(checkpoint)
    facts = _read(path).get(weights)
    if facts is None:
        return None
    again = f"run `udaseg calibrate {printable(str(checkpoint))}` again, or use --uncalibrated"
    if not isinstance(facts, dict) or not _is_temperature(facts.get("temperature")):
        raise DataError(
            f"{printable(str(path))}: damaged: no temperature of the {weights}; {again}"
        )
    if facts.get("sha256") != digest_of(checkpoint):
        raise DataError(
            f"{printable(str(path))}: was fitted to {printable(str(facts.get('checkpoint')))}, "
            f"which is not {printable(checkpoint.name)} as it is now; {again}"
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
            f"{printable(str(path))}: cannot be read ({error}); run `udaseg calibrate` again, or "
            "use --uncalibrated"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{printable(str(path))}: damaged; run `udaseg calibrate` again")
    return document
