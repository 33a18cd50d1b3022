"""Previews: what the networks say of the same few images while a run trains, as pictures."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from udaseg.adaptation import SelfTraining
from udaseg.data import (
    ClassSpace,
    Crops,
    Sample,
    evenly_spaced,
    pseudo_label_path,
    read_train_ids,
    resize_image,
    resize_labels,
    write_png,
)
from udaseg.engine import Fit
from udaseg.errors import UdasegError
from udaseg.evaluation import labels_from_logits
from udaseg.models import Segmenter
from udaseg.recipe import Recipe
from udaseg.reporting import color_mask, confidence_picture, legend, side_by_side

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

FOLDER = "previews"
DEVICE_FAULTS = (RuntimeError, MemoryError)
"""What a device that is full or broken raises."""
_MOST = 20
_IMAGES = 2
_COLUMN_PX = 320


class Previews:
    """Pictures of a run: image, label, confidence, prediction in a row, and a legend.

    The label is the teacher's where there is one, else what the leg learns from: stored
    pseudo-labels, or on the source the truth. The target's truth is never opened. Drawing changes
    nothing that a step hangs on.

    Args:
        recipe: Of the run.
        made: What trains.
        classes: Outputs of the network.
        folder: Of the run.
    """

    def __init__(self, recipe: Recipe, made: Fit, classes: ClassSpace, folder: Path) -> None:
        self._made, self._classes, self._folder = made, classes, folder / FOLDER
        self._steps, wanted = recipe.steps, recipe.machine.preview_every
        self._every = max(wanted, math.ceil(recipe.steps / _MOST)) if wanted else 0
        crops = made.batches.target or made.batches.source
        assert crops is not None
        self._crops = crops
        batches = made.batches
        images = (batches.batch_source if batches.source else 0) + (
            batches.batch_target if batches.target else 0
        )
        # fewer pixels than a training step has, so that what fits there fits here
        self._most_px = images * crops.crop[0] * crops.crop[1]

    def due(self, done: int) -> bool:
        """Return whether there is a picture of the state after `done` steps."""
        return bool(self._every) and (done % self._every == 0 or done == self._steps)

    def draw(self, done: int) -> Pixels | None:
        """Write and return the picture after `done` steps; None, and a warning, if it fails.

        A picture is not worth a run: whatever goes wrong ends the previews and nothing else.
        """
        path = self._folder / f"step-{done:06d}.png"
        try:
            sheet = self._sheet()
            write_png(path, sheet)
        except (UdasegError, OSError, *DEVICE_FAULTS) as error:
            log.warning("%s: no more previews in this run (%s)", path, error)
            self._every = 0
            return None
        return sheet

    def _sheet(self) -> Pixels:
        samples = self._crops.samples
        chosen = [samples[place] for place in evenly_spaced(len(samples), _IMAGES)]
        student = self._made.objective.student
        was_training = student.training
        student.eval()
        try:
            rows = [self._row(sample) for sample in chosen]
        finally:
            student.train(was_training)
        sheet = side_by_side(rows, self._titles())
        names = legend(self._classes.names, self._classes.colors, sheet.shape[1])
        return np.concatenate([sheet, names])

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
        objective = self._made.objective
        return objective.teacher if isinstance(objective, SelfTraining) else None

    def _row(self, sample: Sample) -> list[Pixels]:
        image, truth = self._crops.read(sample)
        image = _at_most(image, self._most_px)
        size = (image.shape[0], image.shape[1])
        shown = (round(size[0] * _COLUMN_PX / size[1]), _COLUMN_PX)
        colors = self._classes.colors
        prediction, sure = self._look(self._made.objective.student, image)
        label = self._label(self._crops, sample, truth)
        if self._teacher is not None:
            # as it labels in training, by the batch's statistics where it does so there
            label, sure = self._look(self._teacher, image)
        grey = np.repeat(confidence_picture(sure)[..., None], 3, 2)
        row = [resize_image(image, shown)]
        if label is not None:
            row.append(color_mask(resize_labels(label, shown), colors))
        return [
            *row,
            resize_image(grey, shown),
            color_mask(resize_labels(prediction, shown), colors),
        ]

    @staticmethod
    def _label(crops: Crops, sample: Sample, truth: Pixels | None) -> Pixels | None:
        if crops.pseudo_labels is None:
            return truth
        return read_train_ids(pseudo_label_path(crops.pseudo_labels, sample))

    @torch.no_grad()
    def _look(
        self, network: torch.nn.Module | Segmenter, image: Pixels
    ) -> tuple[Pixels, NDArray[np.float32]]:
        tensor = torch.from_numpy(image).to(self._made.device).permute(2, 0, 1)[None].float() / 255
        size = (image.shape[0], image.shape[1])
        logits = network(tensor).logits[0].float()
        labels, sure = labels_from_logits(logits, size, confidence=True)
        assert sure is not None
        return labels, sure


def _at_most(image: Pixels, pixels: int) -> Pixels:
    """Return an image of at most so many pixels, in its own shape."""
    height, width = image.shape[:2]
    factor = math.sqrt(pixels / (height * width))
    if factor >= 1:
        return image
    return resize_image(image, (max(1, int(height * factor)), max(1, int(width * factor))))
