"""Checkpoints, written so that the last one stays readable if the process is killed.

A checkpoint is `step-000600.pt` (tensors and plain values only) and its manifest
`step-000600.json` (size and SHA-256). The manifest is written last: a run never resumes from a
checkpoint without one.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, NotRequired, Protocol, Required

import torch
from pydantic import AfterValidator, Field, FiniteFloat, InstanceOf
from torch import nn
from torch.nn.utils import get_total_norm
from typing_extensions import TypedDict

from udaseg.distributed import world_size
from udaseg.errors import (
    UNREADABLE_TENSORS,
    CheckpointError,
    EnvironmentFault,
    NotFiniteError,
    why_unreadable,
)
from udaseg.files import mismatch, parse_json, sha256_of
from udaseg.runs.base import BaseWeights
from udaseg.runs.manifests import (
    checkpoint_folder,
    list_manifests,
    refuse_without_checkpoint,
    step_of,
)

log = logging.getLogger(__name__)
FORMAT = 1
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Byte = Annotated[int, Field(ge=0, le=255)]
_PLAIN_TYPES = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        classes: `{"names": [...], "colors": [...]}` of the network's outputs.
        files: Digests of the file names and of the content of each domain.
        objective: State of student, teacher and regularizers.
        processes: Number of training processes; each uses the batch size of the recipe.
        base: The weights file with the tensors of the networks that are not in `objective`; None if
            it has all.
    """

    path: Path
    step: int
    recipe: dict[str, Any]
    classes: dict[str, Any]
    files: dict[str, str]
    objective: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    processes: int = 1
    sha256: str = ""
    base: BaseWeights | None = None


class _Classes(TypedDict):
    names: Annotated[list[str], Field(min_length=1, max_length=255)]
    colors: list[Annotated[list[_Byte], Field(min_length=3, max_length=3)]]


def _one_color_each(classes: _Classes) -> _Classes:
    if len(classes["names"]) != len(classes["colors"]):
        raise ValueError("must have a colour for each name")
    return classes


def _with_plain_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Refuse tensors without data, sparse, quantized and complex ones."""
    is_dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta)
    if not is_dense or tensor.is_complex():
        raise ValueError("must be a dense tensor of plain numbers")
    return tensor


_Tensor = Annotated[InstanceOf[torch.Tensor], AfterValidator(_with_plain_numbers)]


class _Group(TypedDict, total=False):
    params: Required[list[_Count]]
    name: Required[str]
    base_lr: Required[FiniteFloat]
    lr: Required[FiniteFloat]


class _Optimizer(TypedDict):
    state: dict[int, dict[str, _Tensor | None]]
    param_groups: list[_Group]


class _Base(TypedDict):
    path: str
    size: _Count
    sha256: str


class _Payload(TypedDict):
    """The content of a checkpoint file but `format`, as `udaseg.files.mismatch` checks it."""

    recipe: dict[str, Any]
    classes: Annotated[_Classes, AfterValidator(_one_color_each)]
    files: dict[str, str]
    step: _Count
    # early checkpoints of single-process runs lack this key
    processes: NotRequired[Annotated[int, Field(ge=1, lt=2**31)]]
    base: NotRequired[_Base]
    objective: dict[str, _Tensor]
    optimizer: _Optimizer


class SavesState(Protocol):
    """The methods of an optimiser, or of several, that the loop and checkpoints use."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, each with `base_lr` and `name`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""

    def step(self) -> Any:
        """Update the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return `state` by parameter number, and `param_groups`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint of `step` in a folder of checkpoints."""
    return folder / f"step-{step:06d}.pt"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    objective: nn.Module,
    optimizer: SavesState,
    recipe: Mapping[str, Any],
    classes: Mapping[str, Any],
    files: Mapping[str, str],
    keep: int,
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep` up to that step.

    Checkpoints of later steps are not deleted. They are damaged, or the run would not repeat their
    steps; if they counted, they would displace the only readable ones. If the state of `objective`
    leaves out what a weights file has, its attribute `base` names the file.
    """
    base: BaseWeights | None = getattr(objective, "base", None)
    payload = {
        "format": FORMAT,
        "recipe": recipe,
        "classes": classes,
        "files": files,
        "step": step,
        "processes": world_size(),
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        **({} if base is None else {"base": asdict(base)}),
    }
    if refused := list(_unloadable_paths(payload, "checkpoint")):
        raise TypeError(f"not loadable with weights_only: {', '.join(refused[:5])}")
    path = checkpoint_path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        size, digest = _write_durably(path, lambda file: torch.save(payload, file))  # noqa: TID251
        manifest = {"format": FORMAT, "file": path.name, "size": size, "sha256": digest}
        text = json.dumps({**manifest, "step": step})
        _write_durably(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    except (OSError, RuntimeError) as error:
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"{path}: could not be written ({_os_error_message(error)}); free some space, then "
            "continue with --resume"
        ) from error
    for manifest_path in [item for item in list_manifests(folder) if step_of(item) <= step][keep:]:
        manifest_path.unlink()
        manifest_path.with_suffix(".pt").unlink(missing_ok=True)
    return path


def _write_durably(path: Path, write: Callable[[IO[bytes]], object]) -> tuple[int, str]:
    """Call `write` on a temporary file and rename it to `path`; return its size and SHA-256."""
    temporary = path.with_suffix(f"{path.suffix}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    size, digest = temporary.stat().st_size, sha256_of(temporary)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return size, digest


def _os_error_message(error: OSError | RuntimeError) -> str:
    """Return the message of the OSError that torch.save hides behind its zip writer's error."""
    cause: BaseException = error
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__
    return (isinstance(cause, OSError) and cause.strerror) or str(error).partition("\n")[0]


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, verified against its manifest."""
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: holds weights alone, without recipe and classes; give the run or its "
            f"step-*.pt, or start a run from these weights with model.weights={path}"
        )
    manifest = _read_manifest(path.with_suffix(".json"))
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    if manifest is not None and size != manifest["size"]:
        raise CheckpointError(f"{path}: damaged: {size} bytes, expected {manifest['size']}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if manifest is not None and digest != manifest["sha256"]:
                raise CheckpointError(f"{path}: damaged: SHA-256 differs from its manifest")
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except UNREADABLE_TENSORS as error:
        problem = why_unreadable(error)
        raise CheckpointError(f"{path}: not a readable checkpoint: {problem}") from error
    number = payload.get("format") if isinstance(payload, dict) else None
    if mismatch(number, _Count):
        raise CheckpointError(f"{path}: not a udaseg checkpoint")
    if number != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {number}, this version reads {FORMAT}")
    if problem := mismatch(payload, _Payload):
        raise CheckpointError(f"{path}: not a checkpoint as udaseg writes it: {problem}")
    values = {key: payload[key] for key in _Payload.__annotations__ if key in payload}
    if "base" in values:
        values["base"] = BaseWeights(**values["base"])
    return Checkpoint(path=path, sha256=digest, **values)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None; log a warning for each damaged one."""
    for manifest_path in list_manifests(folder):
        try:
            return load_checkpoint(manifest_path.with_suffix(".pt"))
        except CheckpointError as error:
            log.warning("%s; trying the previous checkpoint", error)
    return None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
        return {"size": int(manifest["size"]), "sha256": str(manifest["sha256"])}
    except FileNotFoundError:
        log.warning("%s: no manifest, so the checkpoint cannot be verified", path)
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged manifest: {error}") from error


def _unloadable_paths(value: object, path: str) -> Iterator[str]:
    """Yield the paths inside `value` that `weights_only=True` cannot load."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unloadable_paths(item, f"{path}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]  # a list or a tuple
            yield from _unloadable_paths(item, f"{path}[{index}]")
    elif type(value) not in _PLAIN_TYPES and not isinstance(value, torch.Tensor):
        yield f"{path} ({type(value).__name__})"


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`: the file, or the newest complete one of a run folder."""
    if path.is_file():
        return load_checkpoint(path)
    refuse_without_checkpoint(path)
    checkpoint = newest_checkpoint(checkpoint_folder(path))
    if checkpoint is None:
        raise CheckpointError(f"{path}: holds no readable checkpoint")
    return checkpoint


TEACHER_PREFIX = "teacher.network."
STUDENT_PREFIX = "student."


def network_tensors(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """Return a network's tensors from a checkpoint, by their names in the network.

    Raises:
        NotFiniteError: A weight is NaN or infinite.
    """
    tensors = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.objective.items()
        if name.startswith(prefix)
    }
    if not all_finite(tensors.values()):
        raise NotFiniteError(checkpoint.path, "weights")
    return tensors


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether no number in the tensors is NaN or infinite (waits)."""
    floats = [value for value in tensors if value.is_floating_point() and value.numel()]
    # a norm is ten times as fast as isfinite; isfinite is only needed if squares overflow
    return bool(get_total_norm(floats).isfinite()) or all(
        bool(value.isfinite().all()) for value in floats
    )
