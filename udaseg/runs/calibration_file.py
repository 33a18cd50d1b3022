"""Read and write `calibration.json`, the fitted confidence temperatures of a run."""

from pathlib import Path
from typing import Any

from udaseg.errors import DataError
from udaseg.files import parse_json, read_json, sha256_of, write_json
from udaseg.runs.folder import run_folder_of
from udaseg.runs.leftovers import writing_in_run


def calibration_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's calibration: in its run, else next to it."""
    return run_folder_of(checkpoint) / "calibration.json"


def write_calibration(checkpoint: Path, weights: str, facts: dict[str, Any]) -> Path:
    """Store the temperature and facts of its fit for the student or teacher of a checkpoint."""
    path = calibration_path(checkpoint)
    identity = {"checkpoint": checkpoint.name, "sha256": _digest(checkpoint)}
    with writing_in_run(path.parent):
        # a damaged file is replaced
        write_json(path, {**read_json(path), weights: {**identity, **facts}})
    return path


def read_temperature(checkpoint: Path, weights: str) -> float | None:
    """Return the temperature fitted to a checkpoint's `weights`; None if there is none."""
    path = calibration_path(checkpoint)
    facts = _read(path).get(weights)
    if facts is None:
        return None
    hint = f"run `udaseg calibrate {checkpoint}` again, or use --uncalibrated"
    if not isinstance(facts, dict) or not _is_temperature(facts.get("temperature")):
        raise DataError(f"{path}: damaged, no temperature of the {weights}; {hint}")
    if facts.get("sha256") != _digest(checkpoint):
        raise DataError(
            f"{path}: was fitted to {facts.get('checkpoint')}, "
            f"which differs from the current {checkpoint.name}; {hint}"
        )
    return float(facts["temperature"])


def _digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint from its manifest, which was checked on load."""
    return str(read_json(checkpoint.with_suffix(".json")).get("sha256") or sha256_of(checkpoint))


def _is_temperature(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < 1000


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); run `udaseg calibrate` again, or use --uncalibrated"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: damaged; run `udaseg calibrate` again")
    return document
