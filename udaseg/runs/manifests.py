"""Which checkpoints a run has, by the names of their manifests; reads no checkpoint."""

from pathlib import Path

from udaseg.errors import CheckpointError
from udaseg.files import read_json, sha256_of


def list_manifests(folder: Path) -> list[Path]:
    """Return the checkpoint manifests in `folder`, newest step first, including damaged ones."""
    paths = [path for path in folder.glob("step-*.json") if path.stem[5:].isdigit()]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step in the file name of a checkpoint or its manifest."""
    return int(path.stem[5:])


def checkpoint_folder(path: Path) -> Path:
    """Return the folder of the checkpoints of a run, or the folder itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def digest_of_newest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint file, or of the newest checkpoint of a run folder.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    refuse_without_checkpoint(path)
    file = path
    if path.is_dir():
        file = list_manifests(checkpoint_folder(path))[0].with_suffix(".pt")
    return str(read_json(file.with_suffix(".json")).get("sha256") or sha256_of(file))


def refuse_missing_run(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder.

    Raises:
        CheckpointError: There is nothing of that name.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")


def refuse_without_checkpoint(path: Path) -> None:
    """Refuse a path that is not a file, and not a folder with a checkpoint.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    refuse_missing_run(path)
    if path.is_dir() and not list_manifests(checkpoint_folder(path)):
        raise CheckpointError(f"{path}: holds no readable checkpoint{_runs_in(path)}")


def _runs_in(folder: Path) -> str:
    """Return the runs of a folder of runs, to name one of them; "" if there are none."""
    runs = sorted(recipe.parent for recipe in folder.glob("*/recipe.yaml"))
    if not runs:
        return ""
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"; name one of its runs: {', '.join(map(str, runs[:3]))}{more}"
