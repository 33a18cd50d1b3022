"""Create and lock run folders: one writer at a time, overwritten only on request."""

import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from udaseg.errors import EnvironmentFault, UsageError
from udaseg.files import (
    TEMPORARY_NAME,
    read_json,
    try_file_lock,
    write_json,
    write_text,
)
from udaseg.recipe.load import dump
from udaseg.recipe.schema import Recipe
from udaseg.runs.manifests import list_manifests
from udaseg.runs.records import read_environment, read_status

if TYPE_CHECKING:
    from udaseg.runs.checkpoint import Checkpoint

log = logging.getLogger(__name__)
_Data = str | tuple[str, ...]
"""The data of a section of a recipe."""

START_FILE = "init.json"
"""The checkpoint that a run started from: file, SHA-256 and step."""

IMPORTED = (
    "{run}: was made by `udaseg import` from weights alone, so there is no training to resume; "
    "start a new run from them with --init {run}"
)
"""The message for the resume of an imported run."""

_LOCK = "writer.lock"
_REPLACED = ".replaced.yaml"
"""The recipe of a run that --overwrite is removing."""
_PACKAGES = ("udaseg", "torch", "torchvision", "numpy", "opencv-python-headless", "timm")


def default_run_folder(recipe: Recipe, ending: str | None = None) -> Path:
    """Return runs/<source>-<target>-<name>-<ending>; None ends it with s<seed>."""
    source, target = (
        "+".join(
            Path(data).name.removesuffix(".yaml").removesuffix(".yml") or "data" for data in sets
        )
        for sets in (recipe.source.sets, recipe.target.sets)
    )
    return Path("runs") / f"{source}-{target}-{recipe.name}-{ending or f's{recipe.seed}'}"


def run_folder_of(path: Path) -> Path:
    """Return the run folder of a run or of one of its checkpoints.

    For a checkpoint that is not in a run's `checkpoints/`, return the folder it is in.
    """
    folder = path if path.is_dir() else path.parent
    # the best checkpoints are in a folder below the others
    for checkpoints in (folder, folder.parent):
        if checkpoints.name == "checkpoints":
            return checkpoints.parent
    return folder


def names_of_runs(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: that of its folder, with parent folders if names repeat."""
    paths = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def refuse_file(folder: Path) -> None:
    """Refuse a folder to write that is a file, or lies below one.

    Raises:
        UsageError: It is one, or lies below one.
    """
    for path in (folder, *folder.parents):
        if path.is_file():
            raise UsageError(f"{path}: is a file; choose another --out")


def refuse_existing_run(folder: Path, *, overwrite: bool, can_resume: bool = True) -> None:
    """Refuse a folder that a new run must not use; `overwrite` allows that of another run.

    The message names `--resume`, which an import does not have, only if `can_resume`.
    """
    refuse_file(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    has_recipe = "recipe.yaml" in names
    is_run = has_recipe or _has_traces_of_run(folder)
    if not has_recipe:
        # empty, a start that was killed, or a status written after the folder was deleted
        rest = {name for name in names if not _is_of_start(name)}
        if not rest or _REPLACED in rest or (is_run and rest == {"status.json"}):
            return
    if not is_run:
        raise UsageError(
            f"{folder}: is not a run folder (no recipe.yaml), so nothing in it is touched; choose "
            "another --out"
        )
    if overwrite:
        return
    if has_recipe:
        resume = f"--resume {shlex.quote(str(folder))} to continue it, " if can_resume else ""
        raise UsageError(
            f"{folder}: exists already; use {resume}--overwrite to start again, or --out DIR for "
            "another folder"
        )
    raise UsageError(
        f"{folder}: is what is left of a run without its recipe.yaml, so it cannot be resumed; "
        "remove it or use --overwrite to start again, or --out DIR for another folder"
    )


def _has_traces_of_run(folder: Path) -> bool:
    """Return whether this package has written to a folder, though it has no recipe.yaml."""
    return "unix_time" in read_json(folder / "status.json") or bool(
        list_manifests(folder / "checkpoints")
    )


def _is_of_start(name: str) -> bool:
    """Return whether a file of this name is written before `recipe.yaml`."""
    own = (_LOCK, START_FILE, "command.txt", "environment.json")
    return name in own or TEMPORARY_NAME.fullmatch(name) is not None


def fill_run_folder(
    folder: Path,
    recipe: Recipe,
    command: Sequence[str],
    *,
    init: "Checkpoint | None" = None,
    data: Mapping[str, str] | None = None,
) -> None:
    """Replace all but the lock of a run folder by what is needed to repeat the run.

    The caller holds the lock. `recipe.yaml` goes first and comes last, so a folder that has one is
    a whole run; what a kill leaves of this is taken by the next command that starts a run there.

    Args:
        folder: The run folder.
        recipe: What is trained.
        command: Command line of the user.
        init: The checkpoint that the run starts from.
        data: Absolute paths of the data that the recipe names by a path.

    Raises:
        EnvironmentFault: The folder cannot be written.
    """
    replaced = folder / _REPLACED
    try:
        if (folder / "recipe.yaml").exists():
            (folder / "recipe.yaml").replace(replaced)
        else:
            replaced.touch()
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, _REPLACED):
                path.unlink()
        replaced.unlink(missing_ok=True)
        if init is not None:
            start = {"checkpoint": str(init.path.absolute()), "sha256": init.sha256}
            write_json(folder / START_FILE, {**start, "step": init.step})
        write_origin(folder, command, data)
        write_recipe(folder, recipe)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be written ({error}); choose another --out"
        ) from error


def write_origin(
    folder: Path, command: Sequence[str], data: Mapping[str, str] | None = None
) -> None:
    """Write `command.txt` and `environment.json` of a run, unless they exist."""
    if not (folder / "command.txt").is_file():
        write_text(folder / "command.txt", shlex.join(command) + "\n")
    if not (folder / "environment.json").is_file():
        write_environment(folder, data)


def is_imported(folder: Path) -> bool:
    """Return whether `udaseg import` made the run, of weights without the state of a training."""
    path = folder / "command.txt"
    return path.is_file() and path.read_bytes().startswith(b"udaseg import ")


def is_torchrun_restart(folder: Path) -> bool:
    """Return whether torchrun restarted the command that created this run.

    Such a run resumes from its last checkpoint without `--resume`.
    """
    if not _restart_count() or not (folder / "recipe.yaml").is_file():
        return False
    return read_environment(folder).get("launch") == _launch_id()


def read_num_processes(folder: Path) -> int | None:
    """Return the number of processes that a run was started with; None if it is not known."""
    processes: int | None = read_environment(folder).get("processes")
    return processes


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write or replace a run's `recipe.yaml`."""
    write_text(folder / "recipe.yaml", dump(recipe))


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a run folder, which is made if need be; that of a dead process is taken.

    Yields a function that returns whether the folder is still there, and not another one.

    Raises:
        UsageError: Another process is writing the run.
        EnvironmentFault: The folder cannot be written.
    """
    lock = folder / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(try_file_lock(lock))
            _refuse_second_writer(folder, held)
            # not atomically: the lock is that of this very file
            lock.write_text(json.dumps(_holder(lock)), encoding="utf-8")
            is_here = partial(_is_same, lock, lock.stat())
            stack.callback(lambda: lock.unlink() if is_here() else None)
        except OSError as error:
            raise EnvironmentFault(f"{folder}: cannot be written ({error})") from error
        yield is_here


def _holder(lock: Path) -> dict[str, object]:
    """Return what the lock file says of this process, for file systems without locks."""
    pid = os.getpid()
    # a process id is used again, but not with the same start; a copy of the file has another inode
    facts = {"pid": pid, "started": _start_of_process(pid), "inode": lock.stat().st_ino}
    return {**facts, "host": platform.node(), "launch": _launch_id()}


def _is_same(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:
        return False


def write_environment(folder: Path, data: Mapping[str, str] | None = None) -> None:
    """Write what is needed to repeat a run on this machine to `environment.json`."""
    import torch  # whether a folder can be used is known without it

    from udaseg.distributed import world_size

    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": world_size(),
        "data": data or read_environment(folder).get("data", {}),
        "launch": _launch_id(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "packages": packages,
    }
    write_json(folder / "environment.json", facts)


def _refuse_second_writer(folder: Path, held: bool | None) -> None:
    """Refuse to write a run that another process writes.

    Args:
        folder: The run folder.
        held: Whether this process holds the lock; None if the file system has no locks, so that
            only the words in the file can say who writes.
    """
    lock = folder / _LOCK
    holder = read_json(lock)
    pid, host = holder.get("pid"), holder.get("host")
    is_here = host == platform.node()
    if held is not False:
        if not isinstance(pid, int) or not isinstance(host, str):
            return
        # our own pid belongs to a dead process: in a container each start may get the same pid
        if is_here and (held or pid == os.getpid() or not _is_alive(pid, holder, lock)):
            return
        if _restart_count() and holder.get("launch") == _launch_id():
            return  # torchrun ended all previous processes before it started these
    writer = "another process" if pid is None else f"process {pid} on {host}"
    raise UsageError(
        f"{folder}: {writer} is writing this run; wait for it or stop it"
        + ("" if is_here or held is False else f", then delete {folder / _LOCK}")
    )


def _restart_count() -> int:
    """Return how often torchrun restarted this command."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launch_id() -> str | None:
    """Return an identifier of this torchrun launch; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    if name != "none" and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return name  # the first process may be on another host after a restart
    # on one host the parent process is torchrun; a name chosen by the user may be reused
    return f"{name} {platform.node()} {os.getppid()}"


def _is_alive(pid: int, holder: Mapping[str, object], lock: Path) -> bool:
    """Return whether the process that wrote a lock file, and not a copy of it, is running."""
    if pid <= 0 or holder.get("inode", lock.stat().st_ino) != lock.stat().st_ino:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it belongs to another user
    started = _start_of_process(pid)
    return started is None or holder.get("started", started) == started


def _start_of_process(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None if it is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process is gone, or this is not Linux
        return None
    return stat.rpartition(")")[2].split()[19]


def newest_finished_run(folder: Path) -> Path:
    """Return the run below `folder` that finished last."""
    finished = []
    for status_path in [*folder.glob("*/status.json"), *folder.glob("*/*/status.json")]:
        status = read_status(status_path.parent)
        if not status:
            log.warning("%s: cannot be read; skipping this run", status_path)
        elif status["state"] == "done":
            finished.append((status.get("unix_time", 0.0), status_path.parent))
    if not finished:
        raise UsageError(
            f"{folder}/: no finished run found; give one with --checkpoint RUN, "
            "or train one with `udaseg adapt` or `udaseg demo`"
        )
    return max(finished)[1]


def located(name: str, run: Path) -> str:
    """Return the path of data as the run found it, if the name means nothing in this folder.

    Args:
        name: Data in the recipe of the run.
        run: Its folder.
    """
    paths: dict[str, str] = read_environment(run).get("data", {})
    found = paths.get(name, name)
    return name if Path(name).exists() or not Path(found).exists() else found


def with_located_data(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe of a run with its data where they are; see `located`."""

    def where(_: str, data: _Data) -> _Data:
        if isinstance(data, tuple):
            return tuple(located(name, run) for name in data)
        return located(data, run)

    return _with_data(recipe, where)


def with_data_names(recipe: Recipe, named: Recipe) -> Recipe:
    """Return a recipe with the data of another one, but for data that it no longer has."""
    return _with_data(recipe, lambda section, _: getattr(named, section).data)


def _with_data(recipe: Recipe, change: Callable[[str, _Data], _Data]) -> Recipe:
    """Return a recipe whose sections that name data have what `change` returns for them.

    Args:
        recipe: Stays as it is.
        change: From the name of a section and its data to other data.
    """
    sections = {
        name: replace(section, data=change(name, section.data))
        for name in ("source", "target", "validation")
        if (section := getattr(recipe, name)).data is not None
    }
    return replace(recipe, **sections)
