"""A trained network with its classes, ready for inference."""

from dataclasses import dataclass
from pathlib import Path

import torch

from udaseg.data.labels.classes import ClassSpace
from udaseg.distributed import resolve_device
from udaseg.errors import CheckpointError
from udaseg.models.segmenter import Segmenter, build_segmenter, with_random_weights
from udaseg.recipe.load import from_dict
from udaseg.recipe.schema import Recipe
from udaseg.runs.checkpoint import STUDENT_PREFIX, TEACHER_PREFIX, find_checkpoint, network_tensors


@dataclass(frozen=True)
class Model:
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


def load(path: Path, *, weights: str = "student", device: str = "auto") -> Model:
    """Return the network of a run folder (its newest complete checkpoint) or of a checkpoint file.

    Args:
        path: Run folder or `step-*.pt`.
        weights: `student` or `teacher`.
        device: As in a recipe.

    Raises:
        CheckpointError: There is no checkpoint, or it has no teacher.
    """
    checkpoint = find_checkpoint(path)
    prefix = TEACHER_PREFIX if weights == "teacher" else STUDENT_PREFIX
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
    target_device = resolve_device(device)
    network = build_segmenter(with_random_weights(recipe.model), len(classes))
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
    return Model(
        network,
        classes,
        recipe,
        checkpoint.step,
        checkpoint.path,
        target_device,
        sha256=checkpoint.sha256,
    )
