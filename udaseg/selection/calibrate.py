"""`udaseg calibrate`: fit a temperature to the confidence, without target labels."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from udaseg import __version__
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_image
from udaseg.data.labels.classes import IGNORE, lookup_table
from udaseg.data.labels.read import read_train_ids
from udaseg.data.open import open_dataset
from udaseg.display.console import open_console, safe_text
from udaseg.display.progress import WorkProgress
from udaseg.errors import CheckpointError, DataError
from udaseg.inference import trained_model
from udaseg.inference.labels import logits_at
from udaseg.inference.trained_model import Model
from udaseg.inference.windows import predict_logits
from udaseg.runs.calibration_file import write_calibration
from udaseg.selection.images import evenly_spaced_samples, network_input
from udaseg.selection.temperature import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    CalibrationStatistics,
    confidence_error,
    fit_temperature,
)
from udaseg.text import percent

log = logging.getLogger(__name__)
_MAX_PIXELS = 400_000
_MAX_PIXELS_PER_IMAGE = 20_000
_MIX_WEIGHT = 0.65
_EVALUATION_NOTE = "target labels, evaluation only: the temperature was not fitted to them"


@dataclass(frozen=True)
class _PixelSample:
    """Logits (N, K) and labels (N,) of a sample of pixels, and the name of their origin."""

    description: str
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _TableRow:
    """One row of the table: how reliable confidence is before and after calibration."""

    description: str
    before: CalibrationStatistics
    after: CalibrationStatistics


def calibrate(
    *,
    run: Path,
    on: str,
    images: int,
    weights: str,
    format: str,  # noqa: A002 (the option's own name)
    device: str,
    root: Path,
) -> None:
    """Fit a temperature, store it in the run for `predict`, and print its effect.

    Args:
        run: Run folder or checkpoint.
        on: `source` fits to the source's labels, on its `val` split if there is one. `pseudo` fits
            the predictions for mixtures of unlabelled target images to the predictions for the
            plain images.
        images: Maximum images per data set.
        weights: `student` or `teacher`.
        format: `table` or `json`.
        device: Device that computes.
        root: Folder of the prepared data.

    Raises:
        CheckpointError: There is no such network, or its outputs are not finite.
        DataError: The images are missing, or no pixel has a label.
    """
    loaded = trained_model.load(run, weights=weights, device=device)
    log.info("%s, step %d, %s", loaded.checkpoint, loaded.step, weights)
    fit_pixels = (
        _source_pixels(loaded, images, root)
        if on == "source"
        else _pseudo_labelled_pixels(loaded, images, root)
    )
    temperature = fit_temperature(fit_pixels.logits, fit_pixels.labels)
    _warn_if_extreme(temperature)
    rows = [_table_row(fit_pixels, temperature)]
    validation_pixels = _validation_pixels(loaded, images, root)
    if validation_pixels is not None:
        rows.append(_table_row(validation_pixels, temperature))
    results = _to_json(rows, temperature, on, loaded.step)
    path = write_calibration(loaded.checkpoint, weights, results)
    if format == "json":
        screen = open_console(soft_wrap=True)
        screen.print(json.dumps({"weights": weights, **results}, indent=2), markup=False)
    else:
        _print_table(rows, temperature)
    log.info("written to %s; `udaseg predict` uses it from there", path)
    _warn_if_worse(rows)


def _source_pixels(loaded: Model, images: int, root: Path) -> _PixelSample:
    """Return labelled source pixels, preferably of images that were not trained on."""
    recipe = loaded.recipe.source
    dataset = open_dataset(recipe.data, root=root)
    split = "val" if dataset.splits.get("val") else recipe.split
    if split == recipe.split:
        log.warning(
            "%s has no split 'val': the temperature is fitted to images that the network was "
            "trained on and will be too low (overconfident)",
            dataset.name,
        )
    return _labelled_pixels(loaded, dataset, split, images)


def _validation_pixels(loaded: Model, images: int, root: Path) -> _PixelSample | None:
    """Return pixels of the labelled validation images of the recipe; None if it has none."""
    recipe = loaded.recipe.validation
    if recipe.data is None:
        return None
    try:
        dataset = open_dataset(recipe.data, root=root)
        return _labelled_pixels(loaded, dataset, recipe.split, images)
    except DataError as error:
        log.warning("%s; the temperature is not evaluated on the target", error)
        return None


def _labelled_pixels(
    loaded: Model, dataset: PreparedDataset, split: str, images: int
) -> _PixelSample:
    """Return a sample of pixels of labelled images, with their labels."""
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so no temperature can be fitted to it")
    table = np.frombuffer(lookup_table(dataset.classes.train_ids_in(loaded.classes)), np.uint8)
    pixel_logits, pixel_labels = [], []
    samples, per_image = _sample_images(dataset, split, images)
    with WorkProgress(f"calibrate {dataset.name}", len(samples)) as progress:
        for number, sample in enumerate(samples):
            truth = table[read_train_ids(dataset.label_path(sample))]
            pixels = network_input(loaded, read_image(dataset.image_path(sample)))
            size = (truth.shape[0], truth.shape[1])
            positions = _choose_pixels(np.flatnonzero(truth != IGNORE), per_image, seed=number)
            rows, columns = np.divmod(positions, size[1])
            logit_map = predict_logits(loaded.segmenter, pixels)
            pixel_logits.append(logits_at(logit_map, size, rows, columns).cpu())
            pixel_labels.append(torch.from_numpy(truth[rows, columns].astype(np.int64)))
            progress.advance()
    return _concatenate(loaded, f"{dataset.name} {split}", pixel_logits, pixel_labels)


def _pseudo_labelled_pixels(loaded: Model, images: int, root: Path) -> _PixelSample:
    """Return pixels of mixtures of two target images, labelled by the stronger image.

    On a plain image, a network agrees with its own labels, and a student with its teacher's, far
    more often than either is right. On a mixture, the network errs about as often as on target
    images against the truth.

    Reference: Hu et al., Pseudo-Calibration: Improving Predictive Uncertainty Estimation in
    Unsupervised Domain Adaptation, 2023 (arXiv 2307.07489).
    Differs: pixels instead of images; the partner is the image half the set away, not a random one.
    """
    recipe = loaded.recipe.target
    dataset = open_dataset(recipe.data, root=root)
    pixel_logits, pixel_labels = [], []
    samples, per_image = _sample_images(dataset, recipe.split, images)
    with WorkProgress(f"calibrate {dataset.name}", len(samples)) as progress:
        for number, sample in enumerate(samples):
            partner = samples[(number + len(samples) // 2) % len(samples)]
            strong, weak = (
                network_input(loaded, read_image(dataset.image_path(drawn)))
                for drawn in (sample, partner)
            )
            size = (strong.shape[-2], strong.shape[-1])
            if weak.shape != strong.shape:
                weak = F.interpolate(weak, size, mode="bilinear", align_corners=False)
            positions = _choose_pixels(np.arange(size[0] * size[1]), per_image, seed=number)
            rows, columns = np.divmod(positions, size[1])
            strong_logits = predict_logits(loaded.segmenter, strong)
            mixed_logits = predict_logits(loaded.segmenter, strong.lerp(weak, 1 - _MIX_WEIGHT))
            pixel_logits.append(logits_at(mixed_logits, size, rows, columns).cpu())
            pixel_labels.append(logits_at(strong_logits, size, rows, columns).argmax(1).cpu())
            progress.advance()
    return _concatenate(loaded, f"{dataset.name} {recipe.split}, mixed", pixel_logits, pixel_labels)


def _sample_images(dataset: PreparedDataset, split: str, images: int) -> tuple[list[Sample], int]:
    """Return evenly spaced images of a split, and the number of pixels to sample per image."""
    samples = evenly_spaced_samples(dataset, split, images)
    return samples, min(_MAX_PIXELS_PER_IMAGE, max(1, _MAX_PIXELS // len(samples)))


def _concatenate(
    loaded: Model,
    description: str,
    pixel_logits: Sequence[Tensor],
    pixel_labels: Sequence[Tensor],
) -> _PixelSample:
    """Concatenate the pixels of all images and check that they can be calibrated."""
    logits, labels = torch.cat(list(pixel_logits)), torch.cat(list(pixel_labels))
    if len(labels) == 0:
        raise DataError(f"{description}: no labelled pixel of any class of the network")
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(
            f"{loaded.checkpoint}: its outputs are not finite; the training has diverged"
        )
    return _PixelSample(description, logits, labels)


def _choose_pixels(candidates: NDArray[np.int64], limit: int, *, seed: int) -> NDArray[np.int64]:
    """Choose at most `limit` of the candidates, the same ones in every run."""
    count = min(limit, len(candidates))
    return np.random.default_rng(seed).choice(candidates, count, replace=False)


def _warn_if_extreme(temperature: float) -> None:
    if not 1.01 * MIN_TEMPERATURE < temperature < 0.99 * MAX_TEMPERATURE:
        log.warning(
            "the temperature is at the limit of the allowed range (%g to %g): nearly all "
            "predictions here are right, or nearly all are wrong; do not use it",
            MIN_TEMPERATURE,
            MAX_TEMPERATURE,
        )


def _table_row(pixels: _PixelSample, temperature: float) -> _TableRow:
    before = confidence_error(pixels.logits, pixels.labels)
    return _TableRow(
        pixels.description, before, confidence_error(pixels.logits, pixels.labels, temperature)
    )


def _to_json(rows: Sequence[_TableRow], temperature: float, on: str, step: int) -> dict[str, Any]:
    """Return all results as JSON values."""
    entries = [
        {"data": row.description, "before": asdict(row.before), "after": asdict(row.after)}
        for row in rows
    ]
    document: dict[str, Any] = {
        "temperature": temperature,
        "step": step,
        "udaseg": __version__,
        "fitted": {"on": on, **entries[0]},
    }
    if len(entries) > 1:
        document["looked_at"] = {"note": _EVALUATION_NOTE, **entries[1]}
    return document


def _print_table(rows: Sequence[_TableRow], temperature: float) -> None:
    table = Table(title=f"temperature {temperature:.3f}", title_justify="left")
    table.add_column("pixels of")
    for heading in ("", "accuracy %", "confidence %", "ECE %", "NLL"):
        table.add_column(heading, justify="right")
    for row in rows:
        for stage, reliability in (("before", row.before), ("after", row.after)):
            label = row.description if stage == "before" else f"{reliability.pixels:,} of them"
            numbers = (reliability.accuracy, reliability.confidence, reliability.error)
            table.add_row(safe_text(label), stage, *map(percent, numbers), f"{reliability.nll:.3f}")
    console = open_console()
    console.print(table)
    if len(rows) > 1:
        console.print(f"{rows[1].description}: {_EVALUATION_NOTE}", markup=False, soft_wrap=True)


def _warn_if_worse(rows: Sequence[_TableRow]) -> None:
    """Warn if the temperature moved confidence away from accuracy on the target."""
    for row in rows[1:]:
        if row.after.error > row.before.error:
            log.warning(
                "on %s the calibration error rises from %s to %s %%: this temperature makes "
                "confidence less reliable there; predict with --uncalibrated",
                row.description,
                percent(row.before.error),
                percent(row.after.error),
            )
