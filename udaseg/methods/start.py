"""Start a student from the weights of a checkpoint, whose class list may be another."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from udaseg.errors import CheckpointError
from udaseg.models.adapters import hold_base
from udaseg.models.frozen import frozen_segmenter
from udaseg.models.heads.head import head_class
from udaseg.models.pretrained import fetch_timm_file
from udaseg.models.segmenter import Segmenter, backbone_of, merged_segmenter
from udaseg.recipe.load import expand_path, from_dict
from udaseg.recipe.schema import NAMED_WEIGHTS, TIMM_PREFIX, Model, Recipe
from udaseg.runs.base import BaseWeights, find_base, given_base, read_base
from udaseg.runs.checkpoint import STUDENT_PREFIX, Checkpoint, network_tensors

log = logging.getLogger(__name__)
_ADAPTER = (".lora_a", ".lora_b")
"""How the names of adapters end."""


def open_base(spec: Model) -> tuple[Model, BaseWeights | None]:
    """Return the section `model` to build, and the file of its base weights if it has adapters.

    `pretrained` weights of timm become their file, which a checkpoint can name.

    Raises:
        CheckpointError: The file is not there.
        EnvironmentFault: The `pretrained` weights could not be downloaded.
    """
    if spec.adapters is None or spec.weights == "random":
        return spec, None
    file = given_base() or _weights_file(spec)
    if file is None:
        return spec, None
    base = read_base(file)
    return replace(spec, weights=base.path), base


def segmenter_as_given(recipe: Recipe) -> Segmenter:
    """Return the student's backbone as its weights gave it, without `--init` and adapters.

    Its logits are its last map. No random number of others changes.
    """
    model, _ = open_base(recipe.model)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(recipe.seed)  # as the student's random weights
        return frozen_segmenter(backbone_of(model))


def _weights_file(spec: Model) -> Path | None:
    if spec.weights not in NAMED_WEIGHTS:
        return Path(expand_path(spec.weights))
    if spec.backbone.startswith(TIMM_PREFIX):
        return fetch_timm_file(spec.backbone.removeprefix(TIMM_PREFIX))
    return None


def load_student(
    student: Segmenter,
    init: Checkpoint,
    spec: Model,
    classes: Sequence[str],
    *,
    base: BaseWeights | None = None,
) -> None:
    """Load the student of `init` into `student`, and log what was kept and what begins anew.

    Of the last layer, classes of both lists keep their weights; the others begin anew. Adapters go
    on if both have the same ones and base; else those of `init` are merged, and new ones begin.

    Args:
        student: The network to change; its projector begins anew if `init` has none like it.
        init: A checkpoint of the same network.
        spec: The section `model` of the recipe.
        classes: Names of the student's classes.
        base: The file of the base weights that the student has.

    Raises:
        CheckpointError: The checkpoint is of another network.
    """
    tensors = network_tensors(init, STUDENT_PREFIX)
    had_adapters = any(name.endswith(_ADAPTER) for name in tensors)
    if had_adapters and not _continues(init, spec, base):
        tensors, had_adapters = _merged(init, tensors), False
    if init.base is None or not had_adapters:
        hold_base(student)  # which is now that of `init`
    state = student.state_dict()
    names = list(init.classes["names"])
    if names != list(classes):
        for name, axis in _class_axes(student, spec, len(classes)).items():
            if name in tensors:
                tensors[name] = _with_classes(state[name], tensors[name], axis, classes, names)
    projector = [name for name in state if name.startswith("projector.")]
    keeps_projector = all(
        name in tensors and tensors[name].shape == state[name].shape for name in projector
    )
    anew = [] if keeps_projector else projector
    anew += [] if had_adapters else [name for name in state if name.endswith(_ADAPTER)]
    missing = [name for name in state if name not in tensors and name not in anew]
    shared = {name: value for name, value in tensors.items() if name in state and name not in anew}
    mismatched = [name for name, value in shared.items() if state[name].shape != value.shape]
    if missing or mismatched:
        raise CheckpointError(
            f"{init.path}: of another network: missing {missing[:5]}, other shapes "
            f"{mismatched[:5]}; --init needs the same section 'model'. To keep only the backbone, "
            "write it with `udaseg export RUN --format state-dict`, and set model.weights to "
            "that file"
        )
    student.load_state_dict({**state, **shared})
    log.info("started from the student of %s, step %d", init.path, init.step)
    if names != list(classes):
        log.info("its classes differ: %s", _class_report(classes, names))
    if not keeps_projector:
        log.info("the projection head begins anew: the checkpoint has none like it")


def _continues(init: Checkpoint, spec: Model, base: BaseWeights | None) -> bool:
    """Return whether a student of `spec` on `base` can go on with the adapters of `init`."""
    has_base = init.base is None or init.base.same_as(base)
    return has_base and from_dict(init.recipe).model.adapters == spec.adapters


def _merged(init: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the student of `init`, its adapters merged into the base weights."""
    projector = {name: value for name, value in tensors.items() if name.startswith("projector.")}
    others = {name: value for name, value in tensors.items() if name not in projector}
    base = None if init.base is None else str(find_base(init.base, init.path))
    spec, count = from_dict(init.recipe).model, len(init.classes["names"])
    return {**merged_segmenter(spec, count, others, base=base).state_dict(), **projector}


def _class_axes(student: Segmenter, spec: Model, num_classes: int) -> dict[str, int]:
    """Return the axis of the classes in each tensor of the head that has one."""
    with torch.device("meta"):
        wider = head_class(spec.head).from_spec(spec, student.backbone, num_classes + 1)
    shapes = {name: value.shape for name, value in student.head.state_dict().items()}
    axes = {}
    for name, value in wider.state_dict().items():
        for axis, (size, wider_size) in enumerate(zip(shapes[name], value.shape, strict=True)):
            if size != wider_size:
                axes[f"head.{name}"] = axis
    return axes


def _with_classes(
    new: Tensor, old: Tensor, axis: int, classes: Sequence[str], names: Sequence[str]
) -> Tensor:
    """Return `new` with the values of `old` for the classes that both have.

    `old` is returned if more than the number of classes differs: it is of another network.
    """
    result = new.clone()
    if old.ndim != new.ndim or old.movedim(axis, 0).shape[1:] != new.movedim(axis, 0).shape[1:]:
        return old
    for position, name in enumerate(classes):
        if name in names:
            result.select(axis, position).copy_(old.select(axis, names.index(name)))
    return result


def _class_report(classes: Sequence[str], names: Sequence[str]) -> str:
    """Return which classes of the last layer are kept, begin anew, and are left out."""
    parts = {
        "keeps": [name for name in classes if name in names],
        "begins anew for": [name for name in classes if name not in names],
        "drops": [name for name in names if name not in classes],
    }
    listed = "; ".join(f"{verb} {', '.join(found)}" for verb, found in parts.items() if found)
    return f"the last layer {listed}. All other weights are kept"
