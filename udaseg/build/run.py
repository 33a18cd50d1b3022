"""Build the training setup of a run from a recipe, and load trained networks."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from udaseg.adaptation import Adversarial, Objective, norms_over_ranks
from udaseg.build.batches import batches
from udaseg.build.objectives import (
    STUDENT,
    TEACHER,
    network_tensors,
    objective,
    run_as,
    segmenter,
    without_weights,
)
from udaseg.data import ClassSpace, PreparedDataset
from udaseg.distributed import local_rank, local_world_size, world_size
from udaseg.engine import (
    Checkpoint,
    Fit,
    Together,
    Trainer,
    discriminator_optimizer,
    load,
    newest,
    optimizer,
)
from udaseg.errors import CheckpointError, DataError, EnvironmentFault, RecipeError
from udaseg.models import Segmenter
from udaseg.recipe import Adversarial as AdversarialSpec
from udaseg.recipe import Leg, Optimizer, Recipe, from_dict, legs, network_of

log = logging.getLogger(__name__)

# torch would overwrite all ranks' memories with rank 0's at each step; 2.15 renamed the switch
_SWITCH = ("forward_sync_buffers", "broadcast_buffers")
_BUFFERS_STAY: dict[str, Any] = {
    next(s for s in _SWITCH if s in signature(DistributedDataParallel).parameters): False
}


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, ready for inference.

    Attributes:
        segmenter: In evaluation mode, on `device`.
        classes: Outputs of the network.
        recipe: Recipe that it was trained with.
        step: Number of training steps.
        checkpoint: File it was loaded from.
        device: Device of the network.
        sha256: Digest of the file.
    """

    segmenter: Segmenter
    classes: ClassSpace
    recipe: Recipe
    step: int
    checkpoint: Path
    device: torch.device
    sha256: str = ""


def device_type(name: str) -> str:
    """Return `cuda` or `cpu` for a device name that may be invalid; see `device_of`."""
    gpu = name == "auto" or name.startswith("cuda")
    return "cuda" if gpu and torch.cuda.is_available() else "cpu"


def device_of(name: str) -> torch.device:
    """Return the device with that name; `auto` is CUDA if available.

    With several processes on a host, each gets the GPU with its local rank.

    Raises:
        EnvironmentFault: There is no such device.
        RecipeError: The name is not valid, or names one GPU for several processes.
    """
    if name == "auto":
        gpu = torch.cuda.is_available()
        return torch.device("cuda", local_rank()) if gpu else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"machine.device: '{name}' is not a device; use cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and world_size() > 1:
        if device.index is not None:
            raise RecipeError(
                f"machine.device: {name} is one GPU for {world_size()} processes; use cuda, and "
                "select GPUs with CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", local_rank())
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise EnvironmentFault(
            f"machine.device: {name} is not available ({torch.cuda.device_count()} CUDA devices); "
            "use --device cpu"
        )
    return device


def trained_groups(
    spec: Optimizer, student: Segmenter
) -> list[tuple[str, float, list[tuple[str, nn.Parameter]]]]:
    """Return the student's parameter groups as (name, learning rate, named parameters)."""

    def named(prefix: str, module: nn.Module | None) -> Iterable[tuple[str, nn.Parameter]]:
        if module is None:
            return []
        return [
            (f"{prefix}.{name}", parameter)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    head_parameters = [*named("head", student.head), *named("projector", student.projector)]
    return [
        ("backbone", spec.lr * spec.backbone_lr_mult, list(named("backbone", student.backbone))),
        ("head", spec.lr * spec.head_lr_mult, head_parameters),
    ]


def trainer(recipe: Recipe, target: Objective, stage: Leg | None = None) -> Trainer:
    """Return the optimiser; it holds each trainable parameter exactly once.

    Raises:
        RuntimeError: A parameter is missing or held twice, which is a bug.
    """
    stage = stage or legs(recipe)[0]
    spec = network_of(recipe, stage).optimizer
    groups = trained_groups(spec, target.student)
    first = optimizer(spec.kind, groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    combined: Trainer = first
    if isinstance(target, Adversarial):
        objective_spec = _adversarial(recipe, stage)
        named = target.discriminator.named_parameters(prefix="discriminator")
        second = discriminator_optimizer(named, objective_spec.discriminator_lr)
        combined = Together([first, second])
    held = [id(parameter) for group in combined.param_groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in target.parameters() if parameter.requires_grad}
    if len(held) != len(set(held)) or set(held) != trainable:
        raise RuntimeError("the optimiser does not hold every trained parameter exactly once")
    return combined


def _adversarial(recipe: Recipe, stage: Leg) -> AdversarialSpec:
    spec = stage.objective
    assert isinstance(spec, AdversarialSpec), f"{recipe.name}: {spec}"
    return spec


def run(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    *,
    init: Checkpoint | None = None,
    leg: Leg | None = None,
    pseudo_labels: Path | None = None,
) -> Fit:
    """Return the training setup of a stage, on its device.

    Args:
        recipe: Recipe of the run.
        source: Labelled images.
        target: Unlabelled images.
        init: Start from the student of this checkpoint.
        leg: Stage of the run; None is the first.
        pseudo_labels: Folder of the target's pseudo-labels, for a stage that trains on them.

    Raises:
        DataError: The source has no classes.
        CheckpointError: `init` belongs to another network or has other classes.
    """
    if source.classes is None:
        raise DataError(f"{source.name}: has no labels, so it cannot be used as source")
    if init is not None and list(init.classes["names"]) != list(source.classes.names):
        raise CheckpointError(
            f"{init.path}: its classes are {', '.join(init.classes['names'])}, but {source.name} "
            f"has {', '.join(source.classes.names)}; --init needs the same "
            "classes in the same order"
        )
    device = device_of(recipe.machine.device)
    leg = leg or legs(recipe)[0]
    training_objective = objective(recipe, len(source.classes), init=init, leg=leg)
    training_objective.to(device)
    run_as(training_objective, recipe.machine)
    machine = recipe.machine
    return Fit(
        model=of_all_ranks(training_objective),
        objective=training_objective,
        optimizer=trainer(recipe, training_objective, leg),
        batches=batches(recipe, source, target, leg, pseudo_labels),
        device=device,
        precision=machine.precision,
        workers=workers(machine.workers, device),
        power=recipe.optimizer.power,
        warmup=recipe.optimizer.warmup,
        clip_norm=recipe.optimizer.clip_norm,
        checkpoint_every=machine.checkpoint_every,
        max_bad_steps=machine.max_bad_steps,
        micro_batches=machine.micro_batches,
        begin=leg.begin,
        schedule_stop=leg.schedule_stop,
    )


def of_all_ranks(training_objective: Objective) -> nn.Module:
    """Return the module to call with a batch: the objective, or a wrapper that sums gradients.

    Args:
        training_objective: Objective on its device. With several processes, its batch norms are
            changed to use the images of all ranks.
    """
    if world_size() == 1:
        return training_objective
    norms_over_ranks(training_objective)
    # no parameter is unused: each objective keeps all trained parameters in the graph of each step
    return DistributedDataParallel(
        training_objective, gradient_as_bucket_view=True, **_BUFFERS_STAY
    )


def workers(requested: int, device: torch.device) -> int:
    """Return the number of loader processes.

    A negative request means automatic: 0 on a CPU, where training uses all cores.
    """
    if requested >= 0:
        return requested
    if device.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // local_world_size() - 1))


def load_run(path: Path, *, weights: str = "student", device: str = "auto") -> LoadedRun:
    """Return the network of a run folder (its newest complete checkpoint) or of a checkpoint file.

    Args:
        path: Run folder or `step-*.pt`.
        weights: `student` or `teacher`.
        device: As in a recipe.

    Raises:
        CheckpointError: There is no checkpoint, or it has no teacher.
    """
    checkpoint = find_checkpoint(path)
    prefix = TEACHER if weights == "teacher" else STUDENT
    tensors = network_tensors(checkpoint, prefix)
    if not tensors:
        raise CheckpointError(f"{checkpoint.path}: holds no {weights}; use --weights student")
    recipe = from_dict(checkpoint.recipe)
    classes = ClassSpace(
        tuple(checkpoint.classes["names"]),
        tuple(
            (int(red), int(green), int(blue)) for red, green, blue in checkpoint.classes["colors"]
        ),
    )
    target_device = device_of(device)
    network = segmenter(without_weights(recipe.model), len(classes))
    network_state = {
        name: value for name, value in tensors.items() if not name.startswith("projector.")
    }
    try:
        network.load_state_dict(network_state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path}: does not match its own recipe: {error}"
        ) from error
    network.to(target_device).to(memory_format=torch.channels_last)
    network.eval().requires_grad_(False)
    return LoadedRun(
        network,
        classes,
        recipe,
        checkpoint.step,
        checkpoint.path,
        target_device,
        sha256=checkpoint.sha256,
    )


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`: the file, or the newest complete one of a run folder."""
    if path.is_file():
        return load(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint = newest(folder)
    if checkpoint is None:
        raise CheckpointError(f"{path}: holds no readable checkpoint")
    return checkpoint


def class_document(classes: ClassSpace) -> dict[str, Any]:
    """Return a class space as the plain values that a checkpoint stores."""
    return {"names": list(classes.names), "colors": [list(color) for color in classes.colors]}
