"""Draw what the networks predict for the same few images while a run trains."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from udaseg.data.datasets.index import Sample, evenly_spaced_indices
from udaseg.data.files.images import Pixels, write_png
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.pseudo_labels import pseudo_label_path
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.display.pictures import color_mask, comparison_sheet, confidence_image, legend
from udaseg.errors import UdasegError
from udaseg.inference.labels import labels_from_logits
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.schema import Recipe
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.memory import DEVICE_ERRORS
from udaseg.training.setup import TrainingSetup, images_per_step

log = logging.getLogger(__name__)
FOLDER = "previews"

_MAX_PREVIEWS = 20
_NUM_IMAGES = 2
_COLUMN_PX = 320


class Previews(Callback):
    """Draws pictures of a run: image, label, confidence and prediction in a row, and a legend.

    The label is the teacher's if there is one, else the label that the stage trains on: stored
    pseudo-labels, or the truth on the source. The target's truth is never read. Drawing does not
    change the state of the training.
    """

    ranks = "zero"

    def __init__(self, recipe: Recipe, classes: ClassSpace, folder: Path) -> None:
        self._classes, self._run = classes, folder
        self._steps, interval = recipe.steps, recipe.machine.preview_every
        self._interval = max(interval, math.ceil(recipe.steps / _MAX_PREVIEWS)) if interval else 0

    def on_step(self, state: TrainingState) -> None:
        """Draw a picture if one is due, and give it to the loggers."""
        if self.is_due(state.step) and (picture := self.draw(state.setup, state.step)) is not None:
            state.add_preview(picture)

    def is_due(self, done: int) -> bool:
        """Return whether a picture is drawn after `done` steps."""
        return bool(self._interval) and (done % self._interval == 0 or done == self._steps)

    def draw(self, setup: TrainingSetup, done: int) -> Pixels | None:
        """Write and return the picture after `done` steps; None and a warning if it fails.

        A failure only disables the previews; the run continues.
        """
        path = preview_path(self._run, done)
        try:
            sheet = _draw_sheet(setup, self._classes)
            write_png(path, sheet)
        except (UdasegError, OSError, *DEVICE_ERRORS) as error:
            log.warning("%s: no more previews in this run (%s)", path, error)
            self._interval = 0
            return None
        return sheet


def preview_path(run: Path, step: int) -> Path:
    """Return the file of the preview after `step` steps."""
    return run / FOLDER / f"step-{step:06d}.png"


def preview_steps(run: Path) -> list[int]:
    """Return the steps of the previews of a run, ascending."""
    names = (path.stem.removeprefix("step-") for path in (run / FOLDER).glob("step-*.png"))
    return sorted(int(name) for name in names if name.isdecimal())


def _draw_sheet(setup: TrainingSetup, classes: ClassSpace) -> Pixels:
    """Return the rows of all images, below their titles and above the legend."""
    crops = setup.batches.target or setup.batches.source
    assert crops is not None
    indices = evenly_spaced_indices(len(crops.samples), _NUM_IMAGES)
    # compiled code serves the step alone: images of other sizes would compile more of it
    with evaluation_mode(setup.objective.student), torch.compiler.set_stance("force_eager"):
        rows = [_row(setup, classes, crops, crops.samples[index]) for index in indices]
    sheet = comparison_sheet([list(row.values()) for row in rows], list(rows[0]))
    return np.concatenate([sheet, legend(classes.names, classes.colors, sheet.shape[1])])


def _row(
    setup: TrainingSetup, classes: ClassSpace, crops: CropSource, sample: Sample
) -> dict[str, Pixels]:
    """Return the pictures of an image by their titles."""
    image, label = crops.read(sample)
    # fewer pixels than a training step, so a preview fits in memory if a step does
    image = _limit_pixels(image, images_per_step(setup.batches) * math.prod(crops.crop))
    column = (round(image.shape[0] * _COLUMN_PX / image.shape[1]), _COLUMN_PX)

    def mask(labels: Pixels) -> Pixels:
        return color_mask(resize_labels(labels, column), classes.colors)

    objective, title = setup.objective, "truth"
    aligned = objective.student.align_corners
    prediction, confidence = _predict(objective.student, aligned, image, setup.device)
    if isinstance(objective, SelfTraining):
        # in its training mode: it labels with batch statistics if it does so in training
        labels, sure = objective.label(image_batch([image], setup.device))
        label, confidence = labels[0].cpu().numpy(), sure[0].cpu().numpy()
        title = "pseudo-label"
    elif crops.pseudo_labels is not None:
        label = read_train_ids(pseudo_label_path(crops.pseudo_labels, sample))
        title = "pseudo-label, fixed"
    row = {"image": resize_image(image, column)}
    if label is not None:
        row[title] = mask(label)
    gray = np.repeat(confidence_image(confidence)[..., None], 3, 2)
    return {**row, "confidence": resize_image(gray, column), "prediction": mask(prediction)}


@torch.no_grad()
def _predict(
    network: nn.Module, aligned: bool, image: Pixels, device: torch.device
) -> tuple[Pixels, NDArray[np.float32]]:
    logits = network(image_batch([image], device)).logits[0].float()
    labels, confidence = labels_from_logits(
        logits, image.shape[:2], confidence=True, align_corners=aligned
    )
    assert confidence is not None
    return labels, confidence


def _limit_pixels(image: Pixels, pixels: int) -> Pixels:
    """Return an image of at most `pixels` pixels, with the same aspect ratio."""
    height, width = image.shape[:2]
    scale = math.sqrt(pixels / (height * width))
    if scale >= 1:
        return image
    return resize_image(image, (max(1, int(height * scale)), max(1, int(width * scale))))
