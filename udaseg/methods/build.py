"""Build the objective of a stage from a recipe: network, loss terms and memories."""

import logging
from typing import assert_never

import torch

from udaseg.errors import CheckpointError, RecipeError
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.objectives.adversarial import Adversarial
from udaseg.methods.objectives.alignment import PrototypeAlignment, SelfDistillation
from udaseg.methods.objectives.entropy import EntropyMinimization
from udaseg.methods.objectives.objective import ColorJitter, Objective
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import PSEUDO_LABELLED
from udaseg.models.discriminator import Discriminator
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.recipe.methods import Adversarial as AdversarialSpec
from udaseg.recipe.methods import EntropyMinimization as EntropySpec
from udaseg.recipe.methods import PrototypeAlignment as AlignmentSpec
from udaseg.recipe.methods import SelfDistillation as DistillationSpec
from udaseg.recipe.methods import SelfTraining as SelfTrainingSpec
from udaseg.recipe.methods import SourceOnly as SourceOnlySpec
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
    if (jitter := stage.source_jitter) is not None:
        objective.source_jitter = ColorJitter(jitter.strength, jitter.hue)
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
            return Adversarial(
                student,
                Discriminator(num_classes),
                discriminator_input=method.sees,
                weight=method.weight,
                temperature=method.temperature,
            )
        case EntropySpec():
            return EntropyMinimization(
                student, weight=method.weight, power=method.power, band=method.band
            )
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
    regional, semantic = method.regional, method.semantic
    channels = None if regional is None else regional.projector.channels
    if semantic is not None:
        channels = semantic.channels
    student = build_segmenter(recipe.model, num_classes, projector_channels=channels)
    _load_student(student, init)
    if regional is not None:
        assert student.projector is not None
        student.projector.requires_grad_(regional.projector.trainable)
    teacher = Teacher(
        student,
        momentum=method.teacher.momentum,
        batch_statistics=method.teacher.batch_statistics,
    )
    regularizers = _build_regularizers(method, num_classes, student)
    return SelfTraining(
        method, student, teacher, num_classes=num_classes, regularizers=regularizers
    )


def _build_regularizers(
    method: SelfTrainingSpec, num_classes: int, student: Segmenter
) -> dict[str, Regularizer]:
    """Return the contrastive terms that the recipe enables."""
    regularizers: dict[str, Regularizer] = {}
    if (regional := method.regional) is not None:
        channels = regional.projector.channels
        regularizers["regional"] = RegionalContrast(regional, channels=channels)
    if method.prototypes is not None:
        channels = student.feature_channels
        regularizers["prototypes"] = PrototypeContrast(
            method.prototypes, num_classes=num_classes, channels=channels
        )
    if method.semantic is not None:
        regularizers["semantic"] = SemanticContrast(method.semantic, num_classes=num_classes)
    return regularizers


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
