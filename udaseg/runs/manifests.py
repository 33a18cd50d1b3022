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
        run = Path("runs") / path
        near = f"; did you mean {run}?" if (run / "recipe.yaml").is_file() else ""
        raise CheckpointError(f"{path}: no such run or checkpoint{near}")


def refuse_no_run_folder(path: Path) -> None:
    """Refuse a path that is not a run folder.

    Raises:
        CheckpointError: There is nothing of that name, or it has no `recipe.yaml`.
    """
    refuse_missing_run(path)
    if not (path / "recipe.yaml").is_file():
        raise CheckpointError(f"{path}: is not a run folder (no recipe.yaml){runs_in(path)}")


def refuse_without_checkpoint(path: Path) -> None:
    """Refuse a path that is not a file, and not a folder with a checkpoint.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    refuse_missing_run(path)
    if path.suffix == ".json" and path.with_suffix(".pt").is_file():
        raise CheckpointError(f"{path}: describes a checkpoint; name {path.with_suffix('.pt')}")
    if path.is_file() and not _may_be_checkpoint(path):
        raise CheckpointError(
            f"{path}: is not a checkpoint; name a run folder, or a file of its checkpoints folder"
        )
    if path.is_dir() and not list_manifests(checkpoint_folder(path)):
        raise CheckpointError(f"{path}: holds no readable checkpoint{runs_in(path)}")


def _may_be_checkpoint(path: Path) -> bool:
    """Return whether a file begins as `torch.save` writes it, or loading it says more."""
    if path.suffix == ".safetensors" or path.with_suffix(".json").is_file():
        return True
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def runs_in(folder: Path) -> str:
    """Return the end of a message that names runs in a folder; "" if there are none."""
    found = [*folder.glob("*/recipe.yaml")] or [*folder.glob("*/*/recipe.yaml")]
    runs = sorted(recipe.parent for recipe in found)
    if not runs:
        return ""
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"; name one of its runs: {', '.join(map(str, runs[:3]))}{more}"
