"""Draw what the networks predict for the same few images while a run trains."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
from udaseg.models.segmenter import Segmenter, evaluation_mode
from udaseg.recipe.schema import Recipe
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.memory import DEVICE_ERRORS
from udaseg.training.setup import TrainingSetup

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

    Args:
        recipe: Recipe of the run.
        classes: Classes of the network.
        folder: Run folder.
    """

    ranks = "zero"

    def __init__(self, recipe: Recipe, classes: ClassSpace, folder: Path) -> None:
        self._classes, self._folder = classes, folder / FOLDER
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
        path = self._folder / f"step-{done:06d}.png"
        try:
            sheet = _Sheet(setup, self._classes).draw()
            write_png(path, sheet)
        except (UdasegError, OSError, *DEVICE_ERRORS) as error:
            log.warning("%s: no more previews in this run (%s)", path, error)
            self._interval = 0
            return None
        return sheet


class _Sheet:
    """Draws one picture.

    Args:
        setup: Training setup of the stage.
        classes: Classes of the network.
    """

    def __init__(self, setup: TrainingSetup, classes: ClassSpace) -> None:
        self._setup, self._classes = setup, classes
        batches = setup.batches
        crops = batches.target or batches.source
        assert crops is not None
        self._crops = crops
        images = (batches.options.batch_source if batches.source else 0) + (
            batches.options.batch_target if batches.target else 0
        )
        # fewer pixels than a training step, so a preview fits in memory if a step does
        self._max_pixels = images * crops.crop[0] * crops.crop[1]

    def draw(self) -> Pixels:
        """Return the rows of all images, below their titles and above the legend."""
        samples = self._crops.samples
        selected = [samples[index] for index in evenly_spaced_indices(len(samples), _NUM_IMAGES)]
        with evaluation_mode(self._setup.objective.student):
            rows = [self._row(sample) for sample in selected]
        sheet = comparison_sheet(rows, self._titles())
        legend_image = legend(self._classes.names, self._classes.colors, sheet.shape[1])
        return np.concatenate([sheet, legend_image])

    def _titles(self) -> list[str]:
        if self._teacher is not None:
            return ["image", "pseudo-label", "confidence", "prediction"]
        if self._crops.pseudo_labels is not None:
            return ["image", "pseudo-label, fixed", "confidence", "prediction"]
        if self._crops.labelled:
            return ["image", "truth", "confidence", "prediction"]
        return ["image", "confidence", "prediction"]

    @property
    def _teacher(self) -> torch.nn.Module | None:
        objective = self._setup.objective
        return objective.teacher if isinstance(objective, SelfTraining) else None

    def _row(self, sample: Sample) -> list[Pixels]:
        image, truth = self._crops.read(sample)
        image = _limit_pixels(image, self._max_pixels)
        size = (image.shape[0], image.shape[1])
        column_size = (round(size[0] * _COLUMN_PX / size[1]), _COLUMN_PX)
        colors = self._classes.colors
        prediction, confidence = self._predict(self._setup.objective.student, image)
        label = self._label(self._crops, sample, truth)
        if self._teacher is not None:
            # in its training mode: it labels with batch statistics if it does so in training
            label, confidence = self._predict(self._teacher, image)
        gray = np.repeat(confidence_image(confidence)[..., None], 3, 2)
        row = [resize_image(image, column_size)]
        if label is not None:
            row.append(color_mask(resize_labels(label, column_size), colors))
        return [
            *row,
            resize_image(gray, column_size),
            color_mask(resize_labels(prediction, column_size), colors),
        ]

    @staticmethod
    def _label(crops: CropSource, sample: Sample, truth: Pixels | None) -> Pixels | None:
        if crops.pseudo_labels is None:
            return truth
        return read_train_ids(pseudo_label_path(crops.pseudo_labels, sample))

    @torch.no_grad()
    def _predict(
        self, network: torch.nn.Module | Segmenter, image: Pixels
    ) -> tuple[Pixels, NDArray[np.float32]]:
        size = (image.shape[0], image.shape[1])
        logits = network(image_batch([image], self._setup.device)).logits[0].float()
        labels, confidence = labels_from_logits(logits, size, confidence=True)
        assert confidence is not None
        return labels, confidence


def _limit_pixels(image: Pixels, pixels: int) -> Pixels:
    """Return an image of at most `pixels` pixels, with the same aspect ratio."""
    height, width = image.shape[:2]
    scale = math.sqrt(pixels / (height * width))
    if scale >= 1:
        return image
    return resize_image(image, (max(1, int(height * scale)), max(1, int(width * scale))))
