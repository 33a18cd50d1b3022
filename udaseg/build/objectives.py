"""Build the objective of a stage from a recipe: network, loss terms and memories."""

import logging
from dataclasses import replace
from typing import Literal, assert_never

import torch
from torch import nn

from udaseg.adaptation import (
    Adversarial,
    EntropyMinimization,
    Jitter,
    Objective,
    PrototypeAlignment,
    SelfDistillation,
    SelfTraining,
    SourceOnly,
    Strong,
    Teacher,
)
from udaseg.contrast import (
    Projector,
    PrototypeContrast,
    RegionalContrast,
    Regularizer,
    SemanticContrast,
)
from udaseg.data import IGNORE
from udaseg.engine import Checkpoint
from udaseg.errors import CheckpointError, RecipeError
from udaseg.models import DeepLabV2, DeepLabV3Plus, Discriminator, Segmenter, backbone
from udaseg.recipe import Adversarial as AdversarialSpec
from udaseg.recipe import EntropyMinimization as EntropySpec
from udaseg.recipe import Leg, Machine, Model, Prototypes, Recipe, expand_path, legs, network_of
from udaseg.recipe import PrototypeAlignment as AlignmentSpec
from udaseg.recipe import SelfDistillation as DistillationSpec
from udaseg.recipe import SelfTraining as SelfTrainingSpec
from udaseg.recipe import SourceOnly as SourceOnlySpec

log = logging.getLogger(__name__)

TEACHER = "teacher.network."
STUDENT = "student."


def segmenter(spec: Model, num_classes: int, *, projector_channels: int | None = None) -> Segmenter:
    """Return the network of a recipe, with the backbone's weights loaded."""
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


def objective(
    recipe: Recipe, num_classes: int, *, init: Checkpoint | None = None, leg: Leg | None = None
) -> Objective:
    """Return the objective of a stage, on the CPU, with weights initialised from the recipe's seed.

    Args:
        recipe: Any recipe.
        num_classes: Outputs of the network.
        init: Start from the student of this checkpoint, which may lack a projector.
        leg: Stage of the run; None is the first.
    """
    leg = leg or legs(recipe)[0]
    torch.manual_seed(recipe.seed + leg.number)
    training_objective = _bare(network_of(recipe, leg), leg, num_classes, init)
    if (jitter := leg.source_jitter) is not None:
        training_objective.source_jitter = Jitter(jitter.strength, jitter.hue)
    return training_objective


def _bare(recipe: Recipe, stage: Leg, num_classes: int, init: Checkpoint | None) -> Objective:
    method = stage.objective
    if num_classes < 2 and isinstance(method, AdversarialSpec | EntropySpec):
        raise RecipeError(
            f"{recipe.name}: {method.kind} compares classes, but the source has {num_classes}"
        )
    if isinstance(method, SelfTrainingSpec):
        return _self_training(recipe, method, num_classes, init)
    student = segmenter(recipe.model, num_classes)
    _start_from(student, init)
    match method:
        case SourceOnlySpec():
            return SourceOnly(student)
        case AdversarialSpec():
            return Adversarial(
                student,
                Discriminator(num_classes),
                sees=method.sees,
                weight=method.weight,
                temperature=method.temperature,
            )
        case EntropySpec():
            return EntropyMinimization(
                student, weight=method.weight, power=method.power, band=method.band
            )
        case AlignmentSpec():
            contrast = _prototypes(method.prototypes, num_classes, student, "pseudo_labelled")
            return PrototypeAlignment(student, contrast)
        case DistillationSpec():
            return SelfDistillation(student)
        case _:
            assert_never(method)


def _self_training(
    recipe: Recipe, method: SelfTrainingSpec, num_classes: int, init: Checkpoint | None
) -> SelfTraining:
    regional, semantic = method.regional, method.semantic
    channels = None if regional is None else regional.projector.channels
    if semantic is not None:
        channels = semantic.channels
    student = segmenter(recipe.model, num_classes, projector_channels=channels)
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
    """Return the contrastive terms that the recipe enables."""
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
    if method.prototypes is not None:
        contrast = _prototypes(method.prototypes, num_classes, student, "mixed")
        regularizers["prototypes"] = contrast
    if (semantic := method.semantic) is not None:
        regularizers["semantic"] = SemanticContrast(
            num_classes=num_classes,
            channels=semantic.channels,
            variant=semantic.variant,
            weight=semantic.weight,
            start=semantic.start,
            temperature=semantic.temperature,
            momentum=semantic.momentum,
            bank_rows=semantic.bank_rows,
        )
    return regularizers


def _prototypes(
    spec: Prototypes,
    num_classes: int,
    student: Segmenter,
    second: Literal["mixed", "pseudo_labelled"],
) -> PrototypeContrast:
    return PrototypeContrast(
        num_classes=num_classes,
        channels=student.backbone.channels[1],
        weight=spec.weight,
        temperature=spec.temperature,
        momentum=spec.momentum,
        absent=spec.absent,
        normalise=spec.normalise,
        second=second,
        min_confidence=spec.min_confidence,
    )


def run_as(training_objective: Objective, machine: Machine) -> None:
    """Set the memory layout, recomputation and compilation of an objective's networks.

    Raises:
        EnvironmentFault: They cannot be compiled here.
    """
    training_objective.student.recompute = machine.activation_checkpointing
    training_objective.student.lay_out(channels_last=machine.channels_last)
    if machine.compile:
        training_objective.student.compiled("training")
    if isinstance(training_objective, SelfTraining):
        teacher = training_objective.teacher.network
        teacher.lay_out(channels_last=machine.channels_last)
        if machine.compile:
            # the teacher is never in training mode, and gets only crops
            teacher.compiled("always")


def _start_from(student: Segmenter, init: Checkpoint | None) -> None:
    if init is None:
        return
    tensors = network_tensors(init, STUDENT)
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


def network_tensors(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """Return a network's tensors from a checkpoint, by their names in the network."""
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint.objective.items()
        if name.startswith(prefix)
    }


def without_weights(spec: Model) -> Model:
    """Return the model specification with random weights, so that no weights file is needed."""
    # the checkpoint provides all tensors, loaded with strict=True
    return replace(spec, weights="random")
