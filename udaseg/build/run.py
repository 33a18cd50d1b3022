"""A whole run from a recipe: what trains, on which batches, and how a trained one is loaded."""

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

# torch would copy the first rank's memories over the others' at each step; 2.15 renamed the switch
_SWITCH = ("forward_sync_buffers", "broadcast_buffers")
_BUFFERS_STAY: dict[str, Any] = {
    next(s for s in _SWITCH if s in signature(DistributedDataParallel).parameters): False
}


@dataclass(frozen=True)
class LoadedRun:
    """A network from a run, ready to look at images.

    Attributes:
        segmenter: In evaluation mode, on `device`.
        classes: Its outputs.
        recipe: What it was trained with.
        step: Steps it was trained for.
        checkpoint: The file it came from.
        device: Where it is.
        sha256: Of the file it came from.
    """

    segmenter: Segmenter
    classes: ClassSpace
    recipe: Recipe
    step: int
    checkpoint: Path
    device: torch.device
    sha256: str = ""


def device_type(word: str) -> str:
    """Return `cuda` or `cpu`, for a word that may mean no device at all; see `device_of`."""
    gpu = word == "auto" or word.startswith("cuda")
    return "cuda" if gpu and torch.cuda.is_available() else "cpu"


def device_of(word: str) -> torch.device:
    """Return the device that `word` means; `auto` is CUDA where there is one.

    Of several processes on a host each gets the GPU of its number.

    Raises:
        EnvironmentFault: There is no such device.
        RecipeError: It is none, or one GPU for several processes.
    """
    if word == "auto":
        gpu = torch.cuda.is_available()
        return torch.device("cuda", local_rank()) if gpu else torch.device("cpu")
    try:
        chosen = torch.device(word)
    except RuntimeError as error:
        raise RecipeError(
            f"machine.device: '{word}' is no device; use cpu, cuda or cuda:N"
        ) from error
    if chosen.type == "cuda" and world_size() > 1:
        if chosen.index is not None:
            raise RecipeError(
                f"machine.device: {word} is one GPU for {world_size()} processes; use cuda, and "
                "CUDA_VISIBLE_DEVICES to choose which"
            )
        chosen = torch.device("cuda", local_rank())
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise EnvironmentFault(
            f"machine.device: there is no {word} here ({torch.cuda.device_count()} CUDA devices); "
            "use --device cpu"
        )
    return chosen


def trained_groups(
    spec: Optimizer, student: Segmenter
) -> list[tuple[str, float, list[tuple[str, nn.Parameter]]]]:
    """Return name, learning rate and named parameters of each group of the student."""

    def named(prefix: str, module: nn.Module | None) -> Iterable[tuple[str, nn.Parameter]]:
        if module is None:
            return []
        return [
            (f"{prefix}.{name}", parameter)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    fresh = [*named("head", student.head), *named("projector", student.projector)]
    return [
        ("backbone", spec.lr * spec.backbone_lr_mult, list(named("backbone", student.backbone))),
        ("head", spec.lr * spec.head_lr_mult, fresh),
    ]


def trainer(recipe: Recipe, target: Objective, leg: Leg | None = None) -> Trainer:
    """Return the optimiser; every parameter with a gradient is in it exactly once.

    Raises:
        RuntimeError: A parameter would be left out or counted twice; a fault of ours.
    """
    leg = leg or legs(recipe)[0]
    spec = network_of(recipe, leg).optimizer
    groups = trained_groups(spec, target.student)
    first = optimizer(spec.kind, groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    made: Trainer = first
    if isinstance(target, Adversarial):
        objective_spec = _adversarial(recipe, leg)
        named = target.discriminator.named_parameters(prefix="discriminator")
        second = discriminator_optimizer(named, objective_spec.discriminator_lr)
        made = Together([first, second])
    held = [id(part) for group in made.param_groups for part in group["params"]]
    wanted = {id(part) for part in target.parameters() if part.requires_grad}
    if len(held) != len(set(held)) or set(held) != wanted:
        raise RuntimeError("the optimiser does not hold every trained parameter exactly once")
    return made


def _adversarial(recipe: Recipe, leg: Leg) -> AdversarialSpec:
    spec = leg.objective
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
    """Return all that a leg of a run trains with, on its device.

    Args:
        recipe: Of the run.
        source: Labelled images.
        target: Unlabelled images.
        init: Start from its student.
        leg: Which part of the run; None is the first.
        pseudo_labels: Folder of the target's pseudo-labels, for a leg that learns from them.

    Raises:
        DataError: The source has no classes.
        CheckpointError: `init` is of another network or of other classes.
    """
    if source.classes is None:
        raise DataError(f"{source.name}: has no labels, so it cannot be a source")
    if init is not None and list(init.classes["names"]) != list(source.classes.names):
        raise CheckpointError(
            f"{init.path}: its classes are {', '.join(init.classes['names'])}, but {source.name} "
            f"has {', '.join(source.classes.names)}; --init needs the same classes in one order"
        )
    where = device_of(recipe.machine.device)
    leg = leg or legs(recipe)[0]
    made = objective(recipe, len(source.classes), init=init, leg=leg)
    made.to(where)
    run_as(made, recipe.machine)
    machine = recipe.machine
    return Fit(
        model=of_all_ranks(made),
        objective=made,
        optimizer=trainer(recipe, made, leg),
        batches=batches(recipe, source, target, leg, pseudo_labels),
        device=where,
        precision=machine.precision,
        workers=workers(machine.workers, where),
        power=recipe.optimizer.power,
        warmup=recipe.optimizer.warmup,
        clip_norm=recipe.optimizer.clip_norm,
        checkpoint_every=machine.checkpoint_every,
        max_bad_steps=machine.max_bad_steps,
        micro_batches=machine.micro_batches,
        begin=leg.begin,
        schedule_stop=leg.schedule_stop,
    )


def of_all_ranks(made: Objective) -> nn.Module:
    """Return what is called with a batch: the objective, or its wrapper that adds up gradients.

    Args:
        made: On its device; of several processes its batch norms see all images from now on.
    """
    if world_size() == 1:
        return made
    norms_over_ranks(made)
    # no parameter is ever unused: each objective keeps all that it trains in every step's graph
    return DistributedDataParallel(made, gradient_as_bucket_view=True, **_BUFFERS_STAY)


def workers(wanted: int, where: torch.device) -> int:
    """Return the loader processes: as wished, or none on a CPU, which trains with every core."""
    if wanted >= 0:
        return wanted
    if where.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // local_world_size() - 1))


def load_run(path: Path, *, weights: str = "student", device: str = "auto") -> LoadedRun:
    """Return the network of a run folder (its newest whole checkpoint) or of a checkpoint file.

    Args:
        path: Run folder or `step-*.pt`.
        weights: `student` or `teacher`.
        device: As in a recipe.

    Raises:
        CheckpointError: Nothing to load there, or no teacher in it.
    """
    checkpoint = find_checkpoint(path)
    prefix = TEACHER if weights == "teacher" else STUDENT
    tensors = network_tensors(checkpoint, prefix)
    if not tensors:
        raise CheckpointError(f"{checkpoint.path}: holds no {weights}; use --weights student")
    recipe = from_dict(checkpoint.recipe)
    classes = ClassSpace(
        tuple(checkpoint.classes["names"]),
        tuple((int(r), int(g), int(b)) for r, g, b in checkpoint.classes["colors"]),
    )
    where = device_of(device)
    made = segmenter(without_weights(recipe.model), len(classes))
    kept = {name: part for name, part in tensors.items() if not name.startswith("projector.")}
    try:
        made.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit its own recipe: {error}") from error
    made.to(where).to(memory_format=torch.channels_last)
    made.eval().requires_grad_(False)
    return LoadedRun(
        *(made, classes, recipe, checkpoint.step, checkpoint.path, where), sha256=checkpoint.sha256
    )


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint that `path` means: the file, or the newest whole one of a run."""
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
    """Return a class space as the plain values that a checkpoint keeps."""
    return {"names": list(classes.names), "colors": [list(color) for color in classes.colors]}
