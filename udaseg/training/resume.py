"""Resume a run: find its newest checkpoint, and refuse a recipe that changes the results."""

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.distributed import all_gather_object, differences_between_ranks, rank, world_size
from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError
from udaseg.files import read_json, sha256_of
from udaseg.models.adapters import hold_base
from udaseg.models.frozen import FrozenBackbone
from udaseg.recipe.load import from_dict, load, to_dict
from udaseg.recipe.schema import NAMED_WEIGHTS, Recipe
from udaseg.recipe.stages import leaves, refuse_changed_settings
from udaseg.runs import checkpoint as checkpoints
from udaseg.runs import folder as folder_module
from udaseg.runs.base import BaseWeights, find_base
from udaseg.runs.checkpoint import Checkpoint, SavesState
from udaseg.runs.manifests import list_manifests
from udaseg.runs.records import Start

log = logging.getLogger(__name__)


def find_resume_checkpoint(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """Return the newest checkpoint of a run to resume; None if there is none yet."""
    before = load(folder / "recipe.yaml", stored=True)
    checkpoint = checkpoints.newest_checkpoint(folder / "checkpoints")
    processes = folder_module.read_num_processes(folder)
    if processes is None:
        processes = world_size() if checkpoint is None else checkpoint.processes
    refuse_changed_settings(folder / "recipe.yaml", before, processes, recipe, world_size())
    steps = all_gather_object(None if checkpoint is None else checkpoint.step)
    if len(set(steps)) > 1:
        raise EnvironmentFault(
            f"{folder}: the processes see checkpoints of different steps, {steps}; put the run "
            "folder on a file system that all hosts share"
        )
    if checkpoint is None and (unreadable := list_manifests(folder / "checkpoints")):
        names = ", ".join(path.with_suffix(".pt").name for path in unreadable)
        raise CheckpointError(
            f"{folder / 'checkpoints'}: none of the checkpoints can be read ({names}); replace "
            "them by intact copies, or remove the folder to train again from step 0 with --resume"
        )
    if checkpoint is None:
        log.warning("%s: no checkpoint was written yet; starting at step 0", folder)
    else:
        stored = from_dict(checkpoint.recipe)
        refuse_changed_settings(checkpoint.path, stored, checkpoint.processes, recipe, world_size())
    if rank() == 0:
        _adopt_settings(folder, before, processes, recipe)
    return checkpoint


def refuse_lost_base(folder: Path, recipe: Recipe) -> None:
    """Refuse to resume a run with adapters whose weights file is no longer the one it had.

    Raises:
        CheckpointError: The file is missing or has another content; the message has its SHA-256.
    """
    if recipe.model.adapters is None or recipe.model.weights in NAMED_WEIGHTS:
        return
    checkpoint = checkpoints.newest_checkpoint(folder / "checkpoints")
    if checkpoint is not None and checkpoint.base is not None:
        find_base(checkpoint.base, checkpoint.path)


def _adopt_settings(folder: Path, before: Recipe, processes: int, now: Recipe) -> None:
    """Store changed settings that are not refused, and warn of those that change results."""
    old, new = before.machine, now.machine
    if old.micro_batches != new.micro_batches:
        # not refused: otherwise a run that ran out of memory could not be resumed
        log.warning(
            f"a step now has {new.micro_batches} micro-batches, before {old.micro_batches}: the "
            "results differ"
        )
    if processes != world_size():
        log.warning(
            f"the run continues with {world_size()} processes instead of {processes}: each step "
            "uses the same images, but the results differ by rounding"
        )
        folder_module.write_environment(folder)
    is_other_step = old.micro_batches != new.micro_batches or processes != world_size()
    if is_other_step or old.activation_checkpointing != new.activation_checkpointing:
        folder_module.write_recipe(folder, now)


def refuse_different_settings(recipe: Recipe) -> None:
    """Refuse a run whose processes have different settings; which device and loaders may differ."""
    values = leaves(to_dict(recipe))
    for own in ("machine.device", "machine.workers"):
        del values[own]
    if differences := differences_between_ranks(values):
        raise RecipeError(
            f"the processes of the run have different settings: {differences}. Start all of them "
            "with the same command and the same recipe file"
        )


def load_start_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the `--init` checkpoint of a run that is resumed.

    None if the run starts from its recipe's weights, or has its own checkpoint.
    """
    start = folder / folder_module.START_FILE
    if not start.is_file() or list_manifests(folder / "checkpoints"):
        return None
    stored = read_json(start, Start)
    if not stored:
        raise CheckpointError(
            f"{start}: is damaged, so the initial checkpoint is unknown; start again "
            "with --overwrite and --init"
        )
    path, digest = Path(stored["checkpoint"]), stored["sha256"]
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
    return checkpoints.load_checkpoint(path)


def _match_base(checkpoint: Checkpoint, objective: nn.Module) -> None:
    """Have the state of the objective leave out what that of the checkpoint leaves out.

    The checkpoint of a run with --init may have all, though its recipe names a file.

    Raises:
        CheckpointError: The base weights of the checkpoint are those of another file.
    """
    base: BaseWeights | None = getattr(objective, "base", None)
    if checkpoint.base is None and base is not None:
        hold_base(objective)
        for part in objective.modules():
            if isinstance(part, FrozenBackbone):
                part.unshare()
        objective.base = None  # type: ignore[assignment]  # no tensor or module
    elif checkpoint.base is not None and not checkpoint.base.same_as(base):
        raise CheckpointError(
            f"{checkpoint.path}: was trained on the base weights {checkpoint.base.path}, whose "
            f"content is another now; {checkpoint.base.advice}"
        )


def restore(checkpoint: Checkpoint, objective: nn.Module, optimizer: SavesState) -> int:
    """Load `checkpoint` into an objective and its optimiser, strictly; return the next step."""
    _match_base(checkpoint, objective)
    state = objective.state_dict()
    differences = [f"missing {name}" for name in state if name not in checkpoint.objective]
    for name, value in checkpoint.objective.items():
        if name not in state:
            differences.append(f"unexpected {name}")
        elif state[name].shape != value.shape:
            differences.append(f"{name}: {tuple(value.shape)}, here {tuple(state[name].shape)}")
        elif state[name].dtype != value.dtype:
            differences.append(f"{name}: {value.dtype}, here {state[name].dtype}")
    differences += _optimizer_differences(checkpoint.optimizer, optimizer)
    if differences:
        shown = "; ".join(differences[:10]) + ("; …" if len(differences) > 10 else "")
        raise CheckpointError(f"{checkpoint.path}: belongs to another network or recipe: {shown}")
    objective.load_state_dict(checkpoint.objective, strict=True)
    optimizer.load_state_dict(checkpoint.optimizer)
    return checkpoint.step


def _optimizer_differences(saved: Mapping[str, Any], optimizer: SavesState) -> Iterator[str]:
    """Yield what of the saved state of an optimiser cannot be loaded into this one."""
    pairs = list(
        itertools.zip_longest(saved["param_groups"], optimizer.state_dict()["param_groups"])
    )
    if any(
        one is None or other is None or one.get("param_names") != other.get("param_names")
        for one, other in pairs
    ):
        yield "the optimiser's parameters differ or are in another order"
        return
    for one, other in pairs:
        # other versions of torch have more or fewer switches
        known = {name for name, value in other.items() if name in one or not _is_switch(value)}
        if wrong := sorted(name for name in known if type(one.get(name)) is not type(other[name])):
            yield f"the optimiser's {', '.join(wrong)} of {other['name']} are of another kind"
        elif one["params"] != other["params"]:
            yield f"the optimiser's parameters of {other['name']} are numbered in another way"
    owners = [(part, group) for group in optimizer.param_groups for part in group["params"]]
    for number, values in saved["state"].items():
        if not 0 <= number < len(owners) or not _fits(values, *owners[number]):
            yield f"the optimiser's state of parameter {number} is of another kind"


def _fits(values: Mapping[str, Tensor | None], part: Tensor, group: Mapping[str, Any]) -> bool:
    """Return whether a parameter of a group can have this state: Adam's, or that of SGD."""
    shapes = {name: None if value is None else value.shape for name, value in values.items()}
    if "betas" in group:
        return shapes == {"step": torch.Size(), "exp_avg": part.shape, "exp_avg_sq": part.shape}
    return shapes in ({}, {"momentum_buffer": None}, {"momentum_buffer": part.shape})


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, bool)
