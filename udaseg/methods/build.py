"""Build the objective of a stage from a recipe: network, loss terms and memories."""

import logging
from typing import assert_never

import torch

from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.alignment import PrototypeAlignment, SelfDistillation
from udaseg.methods.objectives.entropy import EntropyMinimization
from udaseg.methods.objectives.objective import Objective
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import PSEUDO_LABELLED
from udaseg.models.discriminator import Discriminator
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.plugins import find_plugin
from udaseg.recipe.contrast import Prototypes, Regional, RegularizerSpec, Semantic
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import EntropyMinimization as EntropySpec
from udaseg.recipe.methods import PrototypeAlignment as AlignmentSpec
from udaseg.recipe.methods import SelfDistillation as DistillationSpec
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec
from udaseg.recipe.methods import SourceOnly as SourceOnlySpec
from udaseg.recipe.methods import regularizer_specs
from udaseg.recipe.schema import Machine, Recipe
from udaseg.recipe.stages import Stage, recipe_of_stage, stages_of
from udaseg.runs.checkpoint import STUDENT_PREFIX, Checkpoint, network_tensors

log = logging.getLogger(__name__)


def build_objective(
    recipe: Recipe, num_classes: int, *, init: Checkpoint | None = None, stage: Stage | None = None
) -> Objective:
    """Return the objective of a stage, on the CPU, with weights initialised from the recipe's seed.

    Args:
        recipe: Any recipe.
        num_classes: Outputs of the network.
        init: Start from the student of this checkpoint, which may lack a projector.
        stage: Stage of the run; None is the first.
    """
    stage = stage or stages_of(recipe)[0]
    torch.manual_seed(recipe.seed + stage.index)
    objective = _build_objective(recipe_of_stage(recipe, stage), stage, num_classes, init)
    objective.source_jitter = stage.source_jitter
    return objective


def _build_objective(
    recipe: Recipe, stage: Stage, num_classes: int, init: Checkpoint | None
) -> Objective:
    method = stage.objective
    if num_classes < 2 and isinstance(method, AdversarialSpec | EntropySpec):
        raise RecipeError(
            f"{recipe.name}: {method.kind} compares classes, but the source has {num_classes}"
        )
    if isinstance(method, SelfTrainingSpec):
        return _build_self_training(recipe, method, num_classes, init)
    student = build_segmenter(recipe.model, num_classes)
    _load_student(student, init)
    match method:
        case SourceOnlySpec():
            return SourceOnly(student)
        case AdversarialSpec():
            return Adversarial(student, Discriminator(num_classes), method)
        case EntropySpec():
            return EntropyMinimization(student, method)
        case AlignmentSpec():
            contrast = PrototypeContrast(
                method.prototypes,
                num_classes=num_classes,
                channels=student.feature_channels,
                second_view=PSEUDO_LABELLED,
            )
            return PrototypeAlignment(student, contrast)
        case DistillationSpec():
            return SelfDistillation(student)
        case _:
            assert_never(method)


def _build_self_training(
    recipe: Recipe, method: SelfTrainingSpec, num_classes: int, init: Checkpoint | None
) -> SelfTraining:
    specs = regularizer_specs(method)
    # at most one regularizer brings a projection head; the recipe's rules check it
    heads = [head for spec in specs.values() if (head := getattr(spec, "projector", None))]
    channels = heads[0].channels if heads else None
    student = build_segmenter(recipe.model, num_classes, projector_channels=channels)
    _load_student(student, init)
    if student.projector is not None:
        student.projector.requires_grad_(heads[0].trainable)
    teacher = Teacher(
        student,
        momentum=method.teacher.momentum,
        batch_statistics=method.teacher.batch_statistics,
    )
    sizes = {"num_classes": num_classes, "channels": student.feature_channels}
    regularizers = {name: _build_regularizer(name, spec, **sizes) for name, spec in specs.items()}
    return SelfTraining(
        method, student, teacher, num_classes=num_classes, regularizers=regularizers
    )


def _build_regularizer(
    name: str, spec: RegularizerSpec | object, *, num_classes: int, channels: int
) -> Regularizer:
    """Return a regularizer for features of `channels` channels."""
    if not isinstance(spec, RegularizerSpec):
        return _build_plugin_regularizer(name, spec, num_classes=num_classes, channels=channels)
    match spec:
        case Regional():
            return RegionalContrast(spec, channels=spec.projector.channels)
        case Prototypes():
            return PrototypeContrast(spec, num_classes=num_classes, channels=channels)
        case Semantic():
            return SemanticContrast(spec, num_classes=num_classes)
        case _:
            assert_never(spec)


def _build_plugin_regularizer(
    name: str, spec: object, *, num_classes: int, channels: int
) -> Regularizer:
    """Return the regularizer of another package.

    Raises:
        EnvironmentFault: The package is not installed, or breaks the contract of `Regularizer`.
    """
    plugin = find_plugin("udaseg.regularizers", name)
    if plugin is None:
        raise EnvironmentFault(f"no installed package has the regularizer '{name}'")
    regularizer_class = plugin.load()
    try:
        regularizer = regularizer_class(spec, num_classes=num_classes, channels=channels)
    except TypeError as error:
        raise EnvironmentFault(f"{plugin.package}: cannot make '{name}': {error}") from error
    if not isinstance(regularizer, Regularizer):
        raise EnvironmentFault(
            f"{plugin.package}: '{name}' is no subclass of udaseg.contrast.Regularizer"
        )
    return regularizer


def apply_machine_options(objective: Objective, machine: Machine) -> None:
    """Set the memory layout, recomputation and compilation of an objective's networks.

    Raises:
        EnvironmentFault: They cannot be compiled here.
    """
    objective.student.recompute = machine.activation_checkpointing
    objective.student.set_memory_format(channels_last=machine.channels_last)
    if machine.compile:
        objective.student.enable_compile("training")
    if isinstance(objective, SelfTraining):
        teacher = objective.teacher.network
        teacher.set_memory_format(channels_last=machine.channels_last)
        if machine.compile:
            # the teacher is never in training mode, and gets only crops
            teacher.enable_compile("always")


def _load_student(student: Segmenter, init: Checkpoint | None) -> None:
    if init is None:
        return
    tensors = network_tensors(init, STUDENT_PREFIX)
    state = student.state_dict()
    missing = [name for name in state if name not in tensors and not name.startswith("projector.")]
    mismatched = [
        name for name in tensors if name in state and state[name].shape != tensors[name].shape
    ]
    if missing or mismatched:
        raise CheckpointError(
            f"{init.path}: of another network: missing {missing[:5]}, "
            f"other shapes {mismatched[:5]}; "
            "--init needs the same model and classes"
        )
    student.load_state_dict(
        {**state, **{key: value for key, value in tensors.items() if key in state}}
    )
    log.info("started from the student of %s, step %d", init.path, init.step)


def adversarial_spec(recipe: Recipe, stage: Stage) -> AdversarialSpec:
    """Return the settings of an adversarial stage."""
    spec = stage.objective
    assert isinstance(spec, AdversarialSpec), f"{recipe.name}: {spec}"
    return spec
