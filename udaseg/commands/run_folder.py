"""The folder of a run: claimed by one writer, never written over without being asked."""

import contextlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from udaseg.commands.starting import START, start_document
from udaseg.distributed import world_size
from udaseg.engine import Checkpoint
from udaseg.errors import EnvironmentFault, UsageError
from udaseg.recipe import Recipe, dump
from udaseg.reporting import read_json, write_json_atomic, write_text_atomic

_LOCK = "writer.lock"
_PACKAGES = ("udaseg", "torch", "torchvision", "numpy", "opencv-python-headless", "timm")


def folder_of(recipe: Recipe, out: Path | None) -> Path:
    """Return where a run goes: `out`, or runs/<source>-<target>-<name>-s<seed>."""
    if out is not None:
        return out
    source, target = (_short(word) for word in (recipe.source.data, recipe.target.data))
    return Path("runs") / f"{source}-{target}-{recipe.name}-s{recipe.seed}"


def run_of(path: Path) -> Path:
    """Return the run folder that a run or one of its checkpoints belongs to.

    A checkpoint that lies in no run's `checkpoints/` has the folder that it lies in.
    """
    folder = path if path.is_dir() else path.parent
    # the best ones lie in a folder of their own below the others
    inside = next((each for each in (folder, folder.parent) if each.name == "checkpoints"), None)
    return folder if inside is None else inside.parent


def create(
    folder: Path,
    recipe: Recipe,
    command: Sequence[str],
    *,
    overwrite: bool,
    init: Checkpoint | None = None,
) -> None:
    """Make a new run folder with all that is needed to run it again.

    Args:
        folder: Of the run.
        recipe: Of the run.
        command: What the user typed.
        overwrite: Take the place of a run that is there.
        init: What the run starts from.

    Raises:
        UsageError: It exists and is not empty, and `overwrite` was not asked for.
        EnvironmentFault: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose another --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{folder}: exists already; --resume {shlex.quote(str(folder))} goes on with it, "
                "--overwrite starts it again, --out DIR takes another folder"
            )
        if not (folder / "recipe.yaml").is_file():
            raise UsageError(
                f"{folder}: is no run folder (no recipe.yaml), so --overwrite leaves it alone; "
                "choose another --out"
            )
        _refuse_second_writer(folder)
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if init is not None:
            # before the recipe, which makes it a run that can be resumed
            write_json_atomic(folder / START, start_document(init))
        (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        (folder / "command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
        write_json_atomic(folder / "environment.json", environment())
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be written ({error}); choose another --out"
        ) from error


def goes_on(folder: Path) -> bool:
    """Return whether torchrun started the command again that began this run.

    It then goes on from its last checkpoint, without being asked to.
    """
    if not _restarts() or not (folder / "recipe.yaml").is_file():
        return False
    return read_json(folder / "environment.json").get("launch") == _launch()


def processes_of(folder: Path) -> int:
    """Return how many processes a run was started with."""
    found = read_json(folder / "environment.json").get("processes", 1)
    return found if isinstance(found, int) else 1


def rewrite_environment(folder: Path) -> None:
    """Let a run's `environment.json` say where it is trained from now on."""
    write_json_atomic(folder / "environment.json", environment())


def rewrite_recipe(folder: Path, recipe: Recipe) -> None:
    """Let a run's `recipe.yaml` say what it is trained with from now on."""
    write_text_atomic(folder / "recipe.yaml", dump(recipe))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the run folder as its one writer; the lock of a dead process is taken over.

    Raises:
        UsageError: A living process writes it.
    """
    lock = folder / _LOCK
    try:
        try:
            _take(lock)
        except FileExistsError:
            _refuse_second_writer(folder)
            lock.unlink(missing_ok=True)
            _take(lock)
    except FileExistsError as error:
        raise UsageError(f"{folder}: another process began to write it just now") from error
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be written ({error})") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _take(lock: Path) -> None:
    with lock.open("x", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "host": platform.node(), "launch": _launch()}, file)


def environment() -> dict[str, object]:
    """Return what a reader needs to know of the machine to repeat a run."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": world_size(),
        "launch": _launch(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "packages": packages,
    }


def _refuse_second_writer(folder: Path) -> None:
    try:
        holder = json.loads((folder / _LOCK).read_text(encoding="utf-8"))
        pid, host = int(holder["pid"]), str(holder["host"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    # of this very number it is a process of before: in a container each start may get the same
    if host == platform.node() and (pid == os.getpid() or not _alive(pid)):
        return
    if _restarts() and holder.get("launch") == _launch():
        return  # torchrun ended all processes before it started these
    raise UsageError(
        f"{folder}: process {pid} on {host} is writing this run; wait for it or stop it"
        + ("" if host == platform.node() else f", then delete {folder / _LOCK}")
    )


def _restarts() -> int:
    """Return how often torchrun started this command again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launch() -> str | None:
    """Return what tells one call of torchrun from another; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    if name != "none" and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return name  # the first process may come to be on another host
    # on one host the parent is the one torchrun; a name that a user chose may be used again
    return f"{name} {platform.node()} {os.getppid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _short(data: str) -> str:
    stem = Path(data).stem if data.endswith((".yaml", ".yml")) else Path(data).name
    return stem or "data"
