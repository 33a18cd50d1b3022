"""`udaseg calibrate`: fit a temperature to the confidence, without target labels."""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg import __version__
from udaseg.data.labels.classes import IGNORE, lookup_table
from udaseg.display.progress import WorkProgress
from udaseg.errors import DataError, UsageError
from udaseg.inference import trained_model
from udaseg.inference.labels import logits_at, refuse_not_finite
from udaseg.inference.run_data import open_run_data
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import predict_logits
from udaseg.runs.calibration_file import calibration_path, write_calibration
from udaseg.selection import temperature as temperatures
from udaseg.selection.images import ImageSet, choose_images, network_input, source_images
from udaseg.text import percent

log = logging.getLogger(__name__)
_MAX_PIXELS = 400_000
_MAX_PIXELS_PER_IMAGE = 20_000
_MIX_WEIGHT = 0.65
_EVALUATION_NOTE = "target labels, evaluation only: the temperature was not fitted to them"
LabelSource = Literal["source", "pseudo"]


@dataclass(frozen=True)
class _PixelSample:
    """Logits (N, K) and labels (N,) of a sample of pixels, and the name of their origin."""

    description: str
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CalibrationRow:
    """How well confidence matches accuracy on some pixels, before and after calibration.

    Attributes:
        description: Data set and split of the pixels.
        note: What these pixels were used for; empty for those of the fit.
    """

    description: str
    before: temperatures.CalibrationStatistics
    after: temperatures.CalibrationStatistics
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and its effect.

    Attributes:
        temperature: Divisor of the logits.
        rows: The pixels of the fit; then, if the recipe has labelled validation images, theirs.
        path: The file that stores the temperature for `predict`.
        on: Labels of the fit: `source` or `pseudo`.
        weights: `student` or `teacher`.
        step: Number of training steps of the network.
    """

    temperature: float
    rows: tuple[CalibrationRow, ...]
    path: Path
    on: LabelSource
    weights: str
    step: int

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as a JSON object."""
        fitted, *evaluated = [
            {"data": row.description, "before": asdict(row.before), "after": asdict(row.after)}
            for row in self.rows
        ]
        document: dict[str, Any] = {
            "weights": self.weights,
            "temperature": self.temperature,
            "step": self.step,
            "udaseg": __version__,
            "fitted": {"on": self.on, **fitted},
        }
        if evaluated:
            document["looked_at"] = {"note": self.rows[1].note, **evaluated[0]}
        return document


def calibrate(
    run: str | os.PathLike[str],
    *,
    on: LabelSource = "source",
    images: int = 100,
    weights: str = "student",
    device: str = "auto",
    root: str | os.PathLike[str] = "data",
) -> Calibration:
    """Return a temperature fitted without target labels, and store it in the run for `predict`.

    Args:
        run: Run folder or checkpoint.
        on: `source` fits to the source's labels, on its `val` split if there is one. `pseudo` fits
            the predictions for mixtures of unlabelled target images to the predictions for the
            plain images.
        images: Maximum images per data set.
        weights: `student` or `teacher`.
        device: Device that computes.
        root: Folder of the prepared data.

    Returns:
        The temperature, and how well confidence matches accuracy before and after.

    Raises:
        UsageError: `on` is neither `source` nor `pseudo`.
        CheckpointError: There is no such network, or its outputs are not finite.
        DataError: The images are missing, or no pixel has a label.

    Example:
        calibration = udaseg.calibrate("runs/city-rccr")
        calibration.temperature, calibration.rows[0].after.error
    """
    if on not in get_args(LabelSource):
        raise UsageError(f"on must be {' or '.join(get_args(LabelSource))}, got '{on}'")
    model = trained_model.load(Path(run), weights=weights, device=device)
    log.info("%s, step %d, %s", model.checkpoint, model.step, weights)
    measure = _source_pixels if on == "source" else _pseudo_labelled_pixels
    fit_pixels = measure(model, images, Path(root))
    temperature = temperatures.fit_temperature(fit_pixels.logits, fit_pixels.labels)
    _warn_if_extreme(temperature)
    rows = [_compare(fit_pixels, temperature)]
    validation_pixels = _validation_pixels(model, images, Path(root))
    if validation_pixels is not None:
        rows.append(_compare(validation_pixels, temperature, note=_EVALUATION_NOTE))
    path = calibration_path(model.checkpoint)
    calibration = Calibration(temperature, tuple(rows), path, on, weights, model.step)
    facts = calibration.to_json()
    del facts["weights"]  # its key in the file
    write_calibration(model.checkpoint, weights, facts)
    log.info("written to %s; `udaseg predict` uses it from there", path)
    for row in rows[1:]:
        _warn_if_worse(row)
    return calibration


def _source_pixels(model: Model, limit: int, root: Path) -> _PixelSample:
    """Return labelled source pixels, preferably of images that were not trained on."""
    images = source_images(model.recipe, limit, root)
    if images.split == model.recipe.source.split:
        log.warning(
            "%s has no split 'val': the temperature is fitted to images that the network was "
            "trained on and will be too low (overconfident)",
            images.dataset.name,
        )
    return _labelled_pixels(model, images)


def _validation_pixels(model: Model, limit: int, root: Path) -> _PixelSample | None:
    """Return pixels of the labelled validation images of the recipe; None if it has none."""
    recipe = model.recipe.validation
    if recipe.data is None:
        return None
    try:
        dataset = open_run_data(model.recipe, recipe.data, root=root)
        return _labelled_pixels(model, choose_images(dataset, recipe.split, limit))
    except DataError as error:
        log.warning("%s; the temperature is not evaluated on the target", error)
        return None


def _labelled_pixels(model: Model, images: ImageSet) -> _PixelSample:
    dataset = images.dataset
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so no temperature can be fitted to it")
    table = np.frombuffer(lookup_table(dataset.classes.train_ids_in(model.classes)), np.uint8)

    def measure(index: int, count: int) -> tuple[Tensor, Tensor]:
        sample = images.samples[index]
        truth = table[dataset.read_labels(sample)]
        rows, columns = _choose_pixels(truth != IGNORE, count, seed=index)
        pixels = network_input(model, dataset.read_image(sample))
        logits = predict_logits(model.segmenter, pixels)
        size = (truth.shape[0], truth.shape[1])
        labels = torch.from_numpy(truth[rows, columns].astype(np.int64))
        return _logits_at(model, logits, size, rows, columns).cpu(), labels

    return _collect(model, images, f"{dataset.name} {images.split}", measure)


def _pseudo_labelled_pixels(model: Model, limit: int, root: Path) -> _PixelSample:
    """Return pixels of mixtures of two target images, labelled by the stronger image.

    On a plain image, a network agrees with its own labels, and a student with its teacher's, far
    more often than either is right. On a mixture, the network errs about as often as on target
    images against the truth.

    Reference: Hu et al., Pseudo-Calibration: Improving Predictive Uncertainty Estimation in
    Unsupervised Domain Adaptation, 2023 (arXiv 2307.07489).
    Differs: pixels instead of images; the partner is the image half the set away, not a random one.
    """
    recipe = model.recipe.target
    dataset = open_run_data(model.recipe, recipe.data, root=root)
    images = choose_images(dataset, recipe.split, limit)
    samples = images.samples

    def measure(index: int, count: int) -> tuple[Tensor, Tensor]:
        partner = samples[(index + len(samples) // 2) % len(samples)]
        strong, weak = (
            network_input(model, dataset.read_image(sample)) for sample in (samples[index], partner)
        )
        size = (strong.shape[-2], strong.shape[-1])
        if weak.shape != strong.shape:
            weak = F.interpolate(weak, size, mode="bilinear", align_corners=False)
        rows, columns = _choose_pixels(np.ones(size, np.bool_), count, seed=index)
        logits = predict_logits(model.segmenter, strong)
        labels = _logits_at(model, logits, size, rows, columns).argmax(1)
        mixed_logits = predict_logits(model.segmenter, strong.lerp(weak, 1 - _MIX_WEIGHT))
        return _logits_at(model, mixed_logits, size, rows, columns).cpu(), labels.cpu()

    return _collect(model, images, f"{dataset.name} {recipe.split}, mixed", measure)


def _logits_at(
    model: Model,
    logits: Tensor,
    size: tuple[int, int],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> Tensor:
    """Return the (N, K) logits of some pixels, enlarged as the model's are."""
    return logits_at(logits, size, rows, columns, align_corners=model.recipe.model.align_corners)


def _collect(
    model: Model,
    images: ImageSet,
    description: str,
    measure: Callable[[int, int], tuple[Tensor, Tensor]],
) -> _PixelSample:
    """Return pixels of all images.

    `measure(index, count)` returns the logits (N, K) and labels (N,) of up to `count` pixels of
    one image.
    """
    total = len(images.samples)
    per_image = min(_MAX_PIXELS_PER_IMAGE, max(1, _MAX_PIXELS // total))
    parts = []
    with WorkProgress(f"calibrate {images.dataset.name}", total) as progress:
        for index in range(total):
            parts.append(measure(index, per_image))
            progress.advance()
    logits, labels = (torch.cat(list(tensors)) for tensors in zip(*parts, strict=True))
    if len(labels) == 0:
        raise DataError(f"{description}: no labelled pixel of any class of the network")
    refuse_not_finite(logits, str(model.checkpoint))
    return _PixelSample(description, logits, labels)


def _choose_pixels(
    allowed: NDArray[np.bool_], limit: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns of at most `limit` allowed pixels, the same in every run."""
    positions = np.flatnonzero(allowed)
    count = min(limit, len(positions))
    chosen = np.random.default_rng(seed).choice(positions, count, replace=False)
    return np.divmod(chosen, allowed.shape[1])


def _compare(pixels: _PixelSample, temperature: float, note: str = "") -> CalibrationRow:
    before = temperatures.confidence_error(pixels.logits, pixels.labels)
    after = temperatures.confidence_error(pixels.logits, pixels.labels, temperature)
    return CalibrationRow(pixels.description, before, after, note)


def _warn_if_extreme(temperature: float) -> None:
    if not 1.01 * temperatures.MIN_TEMPERATURE < temperature < 0.99 * temperatures.MAX_TEMPERATURE:
        log.warning(
            "the temperature is at the limit of the allowed range (%g to %g): nearly all "
            "predictions here are right, or nearly all are wrong; do not use it",
            temperatures.MIN_TEMPERATURE,
            temperatures.MAX_TEMPERATURE,
        )


def _warn_if_worse(row: CalibrationRow) -> None:
    """Warn if the temperature moved confidence away from accuracy on the target."""
    if row.after.error > row.before.error:
        log.warning(
            "on %s the calibration error rises from %s to %s %%: this temperature makes "
            "confidence less reliable there; predict with --uncalibrated",
            row.description,
            percent(row.before.error),
            percent(row.after.error),
        )
