"""Recipe to objects: the only file that knows both."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from udaseg.adaptation import Objective, SelfTraining, SourceOnly, Strong, Teacher
from udaseg.contrast import Projector, PrototypeContrast, RegionalContrast, Regularizer
from udaseg.data import IGNORE, ClassSpace, Crops, PreparedDataset, TrainingBatches
from udaseg.distributed import rank, world_size
from udaseg.engine import Checkpoint, Fit, load, newest, optimizer
from udaseg.errors import CheckpointError, DataError, EnvironmentFault, RecipeError
from udaseg.models import DeepLabV2, DeepLabV3Plus, Segmenter, backbone
from udaseg.recipe import Domain, Model, Optimizer, Recipe, expand_path, from_dict
from udaseg.recipe import SelfTraining as SelfTrainingSpec
from udaseg.recipe import SourceOnly as SourceOnlySpec

log = logging.getLogger(__name__)

_TEACHER = "teacher.network."
_STUDENT = "student."


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
    """

    segmenter: Segmenter
    classes: ClassSpace
    recipe: Recipe
    step: int
    checkpoint: Path
    device: torch.device


def device_of(word: str) -> torch.device:
    """Return the device that `word` means; `auto` is CUDA where there is one.

    Raises:
        EnvironmentFault: There is no such device.
    """
    if word == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(word)
    except RuntimeError as error:
        raise RecipeError(
            f"machine.device: '{word}' is no device; use cpu, cuda or cuda:N"
        ) from error
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise EnvironmentFault(
            f"machine.device: there is no {word} here ({torch.cuda.device_count()} CUDA devices); "
            "use --device cpu"
        )
    return chosen


def segmenter(spec: Model, num_classes: int, *, projector_channels: int | None = None) -> Segmenter:
    """Return the network of a recipe, its backbone's weights loaded."""
    weights = spec.weights
    if weights not in ("imagenet", "random"):
        weights = expand_path(weights)
    body = backbone(spec.backbone, output_stride=spec.output_stride, weights=weights)
    head: nn.Module
    match spec.head:
        case "deeplab_v2":
            head = DeepLabV2(body.channels[1], num_classes, spec.aspp_dilations)
        case "deeplab_v3plus":
            head = DeepLabV3Plus(
                body.channels, num_classes, spec.aspp_dilations, spec.head_channels
            )
        case _:
            assert_never(spec.head)
    return Segmenter(
        body,
        head,
        output_stride=spec.output_stride,
        batch_norm=spec.batch_norm,
        projector=None
        if projector_channels is None
        else Projector(body.channels[1], projector_channels),
    )


def objective(recipe: Recipe, num_classes: int, *, init: Checkpoint | None = None) -> Objective:
    """Return what the recipe minimises, on the CPU, with weights drawn from its seed.

    Args:
        recipe: Any recipe.
        num_classes: Outputs of the network.
        init: Start from the student of this checkpoint; the projector may be missing there.
    """
    torch.manual_seed(recipe.seed)
    method = recipe.method
    match method:
        case SourceOnlySpec():
            student = segmenter(recipe.model, num_classes)
            _start_from(student, init)
            return SourceOnly(student)
        case SelfTrainingSpec():
            return _self_training(recipe, method, num_classes, init)
        case _:
            assert_never(method)


def _self_training(
    recipe: Recipe, method: SelfTrainingSpec, num_classes: int, init: Checkpoint | None
) -> SelfTraining:
    regional = method.regional
    student = segmenter(
        recipe.model,
        num_classes,
        projector_channels=None if regional is None else regional.projector.channels,
    )
    _start_from(student, init)
    if regional is not None:
        assert student.projector is not None
        student.projector.requires_grad_(regional.projector.trainable)
    strong = method.augmentation
    return SelfTraining(
        student,
        Teacher(
            student,
            momentum=method.teacher.momentum,
            batch_statistics=method.teacher.batch_statistics,
        ),
        num_classes=num_classes,
        confidence=method.mixing.confidence,
        share_over=method.mixing.share_over,
        ignore_is_class=method.mixing.ignore_is_class,
        strong=Strong(
            strong.jitter, strong.jitter_probability, strong.blur_probability, strong.blur_sigma
        ),
        mix_weight=method.mix_weight,
        regularizers=_regularizers(method, num_classes, student),
    )


def _regularizers(
    method: SelfTrainingSpec, num_classes: int, student: Segmenter
) -> dict[str, Regularizer]:
    """Return the terms that the recipe names."""
    regularizers: dict[str, Regularizer] = {}
    if (regional := method.regional) is not None:
        regularizers["regional"] = RegionalContrast(
            channels=regional.projector.channels,
            weight=regional.weight,
            ramp=regional.ramp,
            start=regional.start,
            temperature=regional.temperature,
            min_confidence=regional.min_confidence,
            bank_steps=regional.bank_steps,
            cells_per_view=regional.cells_per_view,
            region_size=regional.region_size,
            square_per=regional.square_per,
            keep_ignored=regional.keep_ignored,
            negative_sampling=regional.negative_sampling,
            positive_filtering=regional.positive_filtering,
            momentum_head=regional.momentum_head,
            ignore=IGNORE,
        )
    if (prototypes := method.prototypes) is not None:
        regularizers["prototypes"] = PrototypeContrast(
            num_classes=num_classes,
            channels=student.backbone.channels[1],
            weight=prototypes.weight,
            temperature=prototypes.temperature,
            momentum=prototypes.momentum,
            absent=prototypes.absent,
            normalise=prototypes.normalise,
        )
    return regularizers


def _start_from(student: Segmenter, init: Checkpoint | None) -> None:
    if init is None:
        return
    tensors = _network_tensors(init, _STUDENT)
    own = student.state_dict()
    missing = [name for name in own if name not in tensors and not name.startswith("projector.")]
    other = [name for name in tensors if name in own and own[name].shape != tensors[name].shape]
    if missing or other:
        raise CheckpointError(
            f"{init.path}: not of this network: missing {missing[:5]}, other shapes {other[:5]}; "
            "--init needs the same model and classes"
        )
    student.load_state_dict({**own, **{k: v for k, v in tensors.items() if k in own}})
    log.info("started from the student of %s, step %d", init.path, init.step)


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


def trainer(recipe: Recipe, target: Objective) -> torch.optim.Optimizer:
    """Return the optimiser; every parameter with a gradient is in it exactly once.

    Raises:
        RuntimeError: A parameter would be left out or counted twice; a fault of ours.
    """
    spec = recipe.optimizer
    groups = trained_groups(spec, target.student)
    made = optimizer(spec.kind, groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    held = [id(part) for group in made.param_groups for part in group["params"]]
    wanted = {id(part) for part in target.parameters() if part.requires_grad}
    if len(held) != len(set(held)) or set(held) != wanted:
        raise RuntimeError("the optimiser does not hold every trained parameter exactly once")
    return made


def crops(spec: Domain, dataset: PreparedDataset, *, labelled: bool) -> Crops:
    """Return the training crops of one domain."""
    if labelled and any(sample.label is None for sample in dataset.split(spec.split)):
        raise DataError(
            f"{dataset.name}: split '{spec.split}' has images without labels; a source needs all"
        )
    return Crops(dataset, spec.split, spec.resize, spec.crop, spec.flip, labelled)


def batches(
    recipe: Recipe, source: PreparedDataset, target: PreparedDataset | None
) -> TrainingBatches:
    """Return the batches of the whole run on this rank; target labels are not even looked up."""
    return TrainingBatches(
        crops(recipe.source, source, labelled=True),
        None if target is None else crops(recipe.target, target, labelled=False),
        batch_source=recipe.batch.source,
        batch_target=recipe.batch.target,
        steps=recipe.steps,
        seed=recipe.seed,
        rank=rank(),
        world_size=world_size(),
    )


def run(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    *,
    init: Checkpoint | None = None,
) -> Fit:
    """Return all that a run trains with, on its device.

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
    made = objective(recipe, len(source.classes), init=init)
    made.to(where)
    made.student.to(memory_format=torch.channels_last)
    if isinstance(made, SelfTraining):
        made.teacher.to(memory_format=torch.channels_last)
    model: nn.Module = made
    if world_size() > 1:
        model = DistributedDataParallel(made, broadcast_buffers=False, gradient_as_bucket_view=True)
    machine = recipe.machine
    return Fit(
        model=model,
        objective=made,
        optimizer=trainer(recipe, made),
        batches=batches(recipe, source, target),
        device=where,
        precision=machine.precision,
        workers=workers(machine.workers, where),
        power=recipe.optimizer.power,
        warmup=recipe.optimizer.warmup,
        clip_norm=recipe.optimizer.clip_norm,
        check_every=machine.log_every if where.type == "cuda" else 1,
    )


def workers(wanted: int, where: torch.device) -> int:
    """Return the loader processes: as wished, or none on a CPU, which trains with every core."""
    if wanted >= 0:
        return wanted
    if where.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // world_size() - 1))


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
    prefix = _TEACHER if weights == "teacher" else _STUDENT
    tensors = _network_tensors(checkpoint, prefix)
    if not tensors:
        raise CheckpointError(f"{checkpoint.path}: holds no {weights}; use --weights student")
    recipe = from_dict(checkpoint.recipe)
    classes = ClassSpace(
        tuple(checkpoint.classes["names"]),
        tuple((int(r), int(g), int(b)) for r, g, b in checkpoint.classes["colors"]),
    )
    where = device_of(device)
    made = segmenter(_without_weights(recipe.model), len(classes))
    kept = {name: part for name, part in tensors.items() if not name.startswith("projector.")}
    try:
        made.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit its own recipe: {error}") from error
    made.to(where).to(memory_format=torch.channels_last)
    made.eval().requires_grad_(False)
    return LoadedRun(made, classes, recipe, checkpoint.step, checkpoint.path, where)


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


def _network_tensors(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint.objective.items()
        if name.startswith(prefix)
    }


def _without_weights(spec: Model) -> Model:
    # every tensor comes from the checkpoint, checked strictly
    return replace(spec, weights="random")
