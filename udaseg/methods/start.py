"""Start a student from the weights of a checkpoint, whose class list may be another."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from udaseg.errors import CheckpointError
from udaseg.models.heads.head import head_class
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.schema import Model
from udaseg.runs.checkpoint import STUDENT_PREFIX, Checkpoint, network_tensors

log = logging.getLogger(__name__)


def load_student(student: Segmenter, init: Checkpoint, spec: Model, classes: Sequence[str]) -> None:
    """Load the student of `init` into `student`, and log what was kept and what begins anew.

    Of the last layer, classes of both lists keep their weights; the others begin anew.

    Args:
        student: The network to change; its projector begins anew if `init` has none like it.
        init: A checkpoint of the same network.
        spec: The section `model` of the recipe.
        classes: Names of the student's classes.

    Raises:
        CheckpointError: The checkpoint is of another network.
    """
    tensors, state = network_tensors(init, STUDENT_PREFIX), student.state_dict()
    names = list(init.classes["names"])
    if names != list(classes):
        for name, axis in _class_axes(student, spec, len(classes)).items():
            if name in tensors:
                tensors[name] = _with_classes(state[name], tensors[name], axis, classes, names)
    projector = [name for name in state if name.startswith("projector.")]
    keeps_projector = all(
        name in tensors and tensors[name].shape == state[name].shape for name in projector
    )
    anew = () if keeps_projector else projector
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
