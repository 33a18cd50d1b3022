"""Build the objective of a stage from a recipe: network, loss terms and memories."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import torch

from udaseg.errors import EnvironmentFault, RecipeError
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.feature_distance import FrozenDistance, thing_classes
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
from udaseg.methods.start import load_student, open_base, segmenter_as_given
from udaseg.methods.teacher import Teacher
from udaseg.methods.views import PSEUDO_LABELLED
from udaseg.models.adapters import hold_base
from udaseg.models.discriminator import Discriminator
from udaseg.models.frozen import FrozenBackbone
from udaseg.models.segmenter import Segmenter, build_segmenter
from udaseg.plugins import find_plugin
from udaseg.recipe import methods as specs
from udaseg.recipe.contrast import (
    FeatureDistance,
    Prototypes,
    Regional,
    RegularizerSpec,
    Semantic,
)
from udaseg.recipe.schema import Machine, Recipe
from udaseg.recipe.stages import Stage, recipe_of_stage, stages_of
from udaseg.runs.checkpoint import Checkpoint


def build_objective(
    recipe: Recipe,
    num_classes: int,
    *,
    init: Checkpoint | None = None,
    classes: Sequence[str] | None = None,
    stage: Stage | None = None,
) -> Objective:
    """Return the objective of a stage, on the CPU, with weights initialised from the recipe's seed.

    Args:
        recipe: Any recipe.
        num_classes: Outputs of the network.
        init: Start from the student of this checkpoint, which may lack a projector.
        classes: Names of the classes, if they may differ from those of `init`.
        stage: Stage of the run; None is the first.
    """
    stage = stage or stages_of(recipe)[0]
    method = stage.objective
    torch.manual_seed(recipe.seed + stage.index)
    terms = specs.regularizer_specs(method) if isinstance(method, specs.SelfTraining) else {}
    # at most one regularizer brings a projection head; the recipe's rules check it
    heads = [head for term in terms.values() if (head := getattr(term, "projector", None))]
    model, base = open_base(recipe_of_stage(recipe, stage).model)
    student = build_segmenter(
        model,
        num_classes,
        projector=heads[0] if heads else None,
    )
    _refuse_tokens(method, student, model.backbone)
    method = _masking_of_network(method, student)
    if base is None:
        hold_base(student)
    if init is not None:
        load_student(student, init, model, classes or init.classes["names"], base=base)
    if student.projector is not None:
        student.projector.requires_grad_(heads[0].trainable)
    names = classes or ()
    regularizers = {
        name: _build_regularizer(name, spec, recipe, student, num_classes, names)
        for name, spec in terms.items()
    }
    objective = _build_objective(method, student, regularizers, num_classes, recipe.steps)
    objective.source_jitter, objective.target_jitter = stage.source_jitter, stage.target_jitter
    objective.base = base if student.backbone.base_names else None
    return objective


def _masking_of_network(method: specs.Objective, student: Segmenter) -> specs.Objective:
    """Return a method whose masking has a weight, or no masking if the network does without."""
    if not isinstance(method, specs.SelfTraining) or method.masking is None:
        return method
    if method.masking.weight is not None:
        return method
    weighted = replace(method.masking, weight=1.0) if student.backbone.has_tokens else None
    return replace(method, masking=weighted)


def _refuse_tokens(method: specs.Objective, student: Segmenter, backbone: str) -> None:
    """Refuse a recipe that hides tokens of a network that has none."""
    masking = method.masking if isinstance(method, specs.SelfTraining) else None
    if masking is not None and masking.kind == "token" and not student.backbone.has_tokens:
        raise RecipeError(
            f"method.masking.kind: must be block for {backbone}, got token: only plain ViTs, such "
            "as timm:vit_small_patch14_dinov2, have tokens that can be hidden"
        )


def _build_objective(
    method: specs.Objective,
    student: Segmenter,
    regularizers: Mapping[str, Regularizer],
    num_classes: int,
    steps: int,
) -> Objective:
    match method:
        case specs.SelfTraining(teacher=teacher):
            return SelfTraining(
                method,
                student,
                Teacher(
                    student,
                    momentum=teacher.momentum,
                    batch_statistics=teacher.batch_statistics,
                    ramp=teacher.ramp,
                ),
                num_classes=num_classes,
                regularizers=regularizers,
                steps=steps,
            )
        case specs.SourceOnly():
            return SourceOnly(student)
        case specs.Adversarial():
            return Adversarial(student, Discriminator(num_classes), method)
        case specs.EntropyMinimization():
            return EntropyMinimization(student, method)
        case specs.PrototypeAlignment():
            contrast = PrototypeContrast(
                method.prototypes,
                num_classes=num_classes,
                channels=student.feature_channels,
                second_view=PSEUDO_LABELLED,
            )
            return PrototypeAlignment(student, contrast, method)
        case specs.SelfDistillation():
            return SelfDistillation(student)
        case _:
            assert_never(method)


def _build_distance(
    spec: FeatureDistance, recipe: Recipe, student: Segmenter, classes: Sequence[str]
) -> FrozenDistance:
    """Return the distance of a student to the frozen backbone, which shares the base weights."""
    frozen = FrozenBackbone(segmenter_as_given(recipe))
    frozen.share(student.backbone)
    things = thing_classes(spec, classes)
    return FrozenDistance(spec, frozen, channels=student.feature_channels, things=things)


def _build_regularizer(
    name: str,
    spec: RegularizerSpec | object,
    recipe: Recipe,
    student: Segmenter,
    num_classes: int,
    classes: Sequence[str],
) -> Regularizer:
    """Return a regularizer for the features of a student; `classes` are names, if known."""
    channels = student.feature_channels
    if not isinstance(spec, RegularizerSpec):
        return _build_plugin_regularizer(name, spec, num_classes=num_classes, channels=channels)
    match spec:
        case Regional():
            return RegionalContrast(spec, channels=spec.projector.embedding_channels(channels))
        case Prototypes(anchor="frozen"):
            return AnchorContrast(spec, num_classes=num_classes, channels=channels)
        case Prototypes():
            return PrototypeContrast(spec, num_classes=num_classes, channels=channels)
        case Semantic():
            return SemanticContrast(spec, num_classes=num_classes)
        case FeatureDistance():
            return _build_distance(spec, recipe, student, classes)
        case _:
            assert_never(spec)


def _build_plugin_regularizer(
    name: str, spec: object, *, num_classes: int, channels: int
) -> Regularizer:
    """Return the regularizer of another package."""
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
    """Set the memory layout, recomputation and compilation of an objective's networks."""
    objective.student.recompute = machine.activation_checkpointing
    objective.student.to(memory_format=torch.channels_last)
    for part in objective.modules():
        if isinstance(part, FrozenBackbone):
            part.to(memory_format=torch.channels_last)
    if machine.compile:
        objective.student.enable_compile("training")
    if isinstance(objective, SelfTraining):
        teacher = objective.teacher.network
        teacher.to(memory_format=torch.channels_last)
        if machine.compile:
            # the teacher is never in training mode
            teacher.enable_compile("always")
