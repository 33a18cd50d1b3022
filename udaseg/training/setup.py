"""What a run trains on, and from a recipe to the objective, optimizer and batches of a stage."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from udaseg.data.datasets.index import PreparedDataset, Sample, unlabelled_source
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.loading.batches import BatchOptions, TrainingBatches
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.rare_class import RareClassSettings
from udaseg.distributed import local_world_size, rank, select_device, world_size
from udaseg.errors import DataError, EnvironmentFault
from udaseg.methods.build import apply_machine_options, build_objective
from udaseg.methods.objectives.objective import Objective
from udaseg.methods.sync_norm import sync_batch_norms
from udaseg.models.adapters import leave_out_frozen
from udaseg.recipe.schema import Domain, Machine, Recipe, Source
from udaseg.recipe.stages import Stage, stages_of
from udaseg.runs.checkpoint import Checkpoint, SavesState
from udaseg.selection.candidates import EvaluationSets
from udaseg.training.optimizer import build_optimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The data sets of a run.

    Attributes:
        source: Labelled training images.
        target: Images to adapt to, whose labels are not read; None trains on the source alone.
        validation: Labelled images to score, for reporting only; None scores nothing.
    """

    source: PreparedDataset
    target: PreparedDataset | None
    validation: PreparedDataset | None

    @property
    def classes(self) -> ClassSpace:
        """Classes of the source, which are the network's."""
        assert self.source.classes is not None
        return self.source.classes


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share.

    Attributes:
        checkpoint: Where the run continues; None starts at step 0.
        fit_memory: Split steps into micro-batches until they fit in memory.
        criterion_sets: Images to compare checkpoints on; None keeps only the newest checkpoints.
        folder_is_here: Returns whether the run folder is still where it was, on the first rank.
    """

    recipe: Recipe
    data: RunData
    folder: Path
    checkpoint: Checkpoint | None
    fit_memory: bool
    criterion_sets: EvaluationSets | None
    folder_is_here: Callable[[], bool] = lambda: True

    def refuse_lost_folder(self) -> None:
        """Raise an `EnvironmentFault` rather than write to a folder that was moved or deleted."""
        if not self.folder_is_here():
            raise EnvironmentFault(
                f"{self.folder}: was moved or deleted while the run was writing to it, so the run "
                "ends without its last steps; continue with --resume and the place it is at now"
            )


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that the training loop needs for a stage.

    Attributes:
        join_ranks: Called with the loss of the last backward pass of a step, and returns it; the
            gradients of all passes are then averaged over ranks.
        optimizer: Contains every trained parameter once.
    """

    join_ranks: Callable[[Tensor], Tensor]
    objective: Objective
    optimizer: SavesState
    batches: TrainingBatches
    device: torch.device
    recipe: Recipe
    stage: Stage


# torch would overwrite all ranks' memories with rank 0's at each step; 2.15 renamed the switch
_BUFFER_OPTIONS = ("forward_sync_buffers", "broadcast_buffers")
_KEEP_LOCAL_BUFFERS: dict[str, Any] = {
    next(s for s in _BUFFER_OPTIONS if s in signature(DistributedDataParallel).parameters): False
}


def build_setup(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    *,
    init: Checkpoint | None = None,
    stage: Stage | None = None,
    pseudo_labels: Path | None = None,
) -> TrainingSetup:
    """Return the training setup of a stage, by default of the first, on its device.

    It starts from the student of `init`. `pseudo_labels` is the folder of the target's labels, for
    a stage that trains on them.
    """
    names = _source_classes(source, recipe.source.split)
    device = select_device(recipe.machine.device)
    stage = stage or stages_of(recipe)[0]
    objective = build_objective(recipe, len(names), init=init, classes=names, stage=stage)
    objective.to(device)
    apply_machine_options(objective, recipe.machine)
    return TrainingSetup(
        join_ranks=distribute(objective),
        objective=objective,
        optimizer=build_optimizer(recipe, objective, stage),
        batches=build_batches(recipe, source, target, stage, pseudo_labels),
        device=device,
        recipe=recipe,
        stage=stage,
    )


def estimated_setup(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    **options: Any,
) -> TrainingSetup:
    """Return a setup of the same size as that of `build_setup`, but with random weights."""
    model = replace(recipe.model, weights="random")
    setup = build_setup(replace(recipe, model=model), source, target, **options)
    if recipe.model.weights != "random":
        leave_out_frozen(setup.objective)
    return setup


def _source_classes(source: PreparedDataset, split: str) -> tuple[str, ...]:
    """Return the names of the source's classes; refuse a source that nothing can be learnt from."""
    if source.classes is None:
        raise unlabelled_source(source.name)
    names = source.classes.names
    totals = class_totals(source.split(split), len(names))
    found = [name for name, total in zip(names, totals, strict=True) if total]
    if not found:
        raise DataError(
            f"{source.name}: no label of split '{split}' has a pixel of any class, so nothing can "
            "be learnt; check its label files, and the ids of its classes"
        )
    if len(found) == 1:
        only = "its only class is" if len(names) == 1 else f"the only class in split '{split}' is"
        raise DataError(
            f"{source.name}: {only} '{found[0]}', so there is nothing to tell it from; add a class "
            "for the rest"
        )
    return names


def class_totals(samples: Sequence[Sample], count: int) -> list[int]:
    """Return the number of labelled pixels of each of `count` classes; ones if not counted."""
    counted = [sample.class_pixels for sample in samples if sample.class_pixels]
    return [sum(column) for column in zip(*counted, strict=True)] or [1] * count


def distribute(objective: Objective) -> Callable[[Tensor], Tensor]:
    """Return `TrainingSetup.join_ranks`.

    With several processes, the batch norms are changed to use the images of all ranks.
    """
    if world_size() == 1:
        return one_process
    sync_batch_norms(objective)
    return DistributedDataParallel(
        _ReachesAll(objective), gradient_as_bucket_view=True, **_KEEP_LOCAL_BUFFERS
    )


def one_process(loss: Tensor) -> Tensor:
    """Return the loss: a single process has no other gradients."""
    return loss


class _ReachesAll(nn.Module):
    """Adds all trained parameters to the graph of a loss, whose backward pass must reach them."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, loss: Tensor) -> Tensor:
        trained = [part for part in self.parameters() if part.requires_grad]
        result: Tensor = _LossWithParameters.apply(loss, *trained)
        return result


class _LossWithParameters(torch.autograd.Function):
    """A loss whose graph includes parameters, without a gradient for them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.count


def worker_count(requested: int, device: torch.device) -> int:
    """Return the number of loader processes.

    A negative request means automatic: 0 on a CPU, where training uses all cores.
    """
    if requested >= 0:
        return requested
    if device.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // local_world_size() - 1))


def build_crop_source(spec: Domain, dataset: PreparedDataset, *, labelled: bool) -> CropSource:
    """Return the training crops of one domain, from a cache of that size if there is one."""
    if len(dataset.parts) > 1:
        return _joined_crops(spec, dataset)
    if labelled and any(sample.label is None for sample in dataset.split(spec.split)):
        raise DataError(
            f"{dataset.name}: split '{spec.split}' has images without labels; "
            "a source needs labels for all"
        )
    return CropSource(
        dataset,
        spec.split,
        spec.resize,
        spec.crop,
        spec.flip,
        labelled,
        scale=spec.scale,
        cache=open_cache(
            dataset, spec.split, spec.resize, labelled=labelled, resampling=spec.resampling
        ),
        resampling=spec.resampling,
    )


def _joined_crops(spec: Domain, dataset: PreparedDataset) -> CropSource:
    """Return the crops of several labelled data sets, each read at its own size."""
    assert isinstance(spec, Source)
    dataset.split(spec.split)  # an error that names all sets, if one has no such split
    parts = tuple(
        build_crop_source(replace(spec, resize=size), part, labelled=True)
        for size, part in zip(spec.sizes, dataset.parts, strict=True)
    )
    return CropSource(
        dataset,
        spec.split,
        None,
        spec.crop,
        spec.flip,
        labelled=True,
        scale=spec.scale,
        parts=parts,
        shares=spec.shares,
    )


def images_per_step(batches: TrainingBatches) -> int:
    """Return the number of images in a batch of this rank."""
    return sum(shape[0] for name, shape in batches.shapes().items() if name.endswith("_images"))


def build_batches(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    stage: Stage | None = None,
    pseudo_labels: Path | None = None,
) -> TrainingBatches:
    """Return the batches of a stage on this rank; target labels are never read."""
    stage = stage or stages_of(recipe)[0]
    from_source = from_target = None
    batch_target = recipe.batch.target
    rare_class = recipe.source.rare_class
    if stage.reads_source:
        crops = build_crop_source(recipe.source, source, labelled=True)
        rare = RareClassSettings(
            rare_class.temperature, rare_class.min_pixels, rare_class.min_crop_pixels
        )
        from_source = replace(crops, sampling=stage.source_sampling, rare=rare)
    if target is not None and stage.reads_target:
        spec, own = recipe.target, stage.target
        if own is not None:
            batch_target = own.batch
            spec = replace(spec, resize=own.resize, crop=own.crop, scale=own.scale, flip=own.flip)
        crops = build_crop_source(spec, target, labelled=False)
        from_target = replace(crops, pseudo_labels=pseudo_labels)
    batches = TrainingBatches(
        from_source,
        from_target,
        BatchOptions(
            batch_source=recipe.batch.source,
            batch_target=batch_target,
            steps=stage.end,
            seed=recipe.seed,
            rank=rank(),
            world_size=world_size(),
            first_step=stage.begin,
            on_bad_sample=recipe.machine.on_bad_sample,
        ),
    )
    if batches.classes_never_drawn and source.classes is not None:
        log.warning(
            "no image has %d pixels of %s, so rare-class sampling never picks these classes; lower "
            "source.rare_class.min_pixels",
            rare_class.min_pixels,
            ", ".join(source.classes.names[number] for number in batches.classes_never_drawn),
        )
    return batches


@contextlib.contextmanager
def chosen_kernels(machine: Machine) -> Iterator[None]:
    """Use the kernels that a recipe asks for; torch warns where it has no deterministic one."""
    backends: Any = torch.backends  # untyped: its annotations lack `cudnn.conv`
    cudnn, filling = backends.cudnn, torch.utils.deterministic
    precision = "tf32" if machine.tf32 else "ieee"
    # not allow_tf32: torch refuses to read it once fp32_precision was set
    switches: list[tuple[Any, str, object]] = [
        (cudnn.conv, "fp32_precision", precision),
        (backends.cuda.matmul, "fp32_precision", precision),
        (cudnn, "benchmark", machine.cudnn_benchmark and not machine.deterministic),
    ]
    if machine.deterministic:
        switches += [(cudnn, "deterministic", True), (filling, "fill_uninitialized_memory", False)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        with _deterministic_algorithms() if machine.deterministic else contextlib.nullcontext():
            yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    # cuBLAS reads this variable at its first use
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
