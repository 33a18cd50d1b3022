"""`udaseg calibrate`: a temperature that brings confidence to accuracy, without target labels."""

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
from rich.console import Console
from rich.table import Table
from torch import Tensor

from udaseg import __version__, build
from udaseg.commands.calibration_file import write_calibration
from udaseg.commands.scoring import trained_size
from udaseg.data import (
    IGNORE,
    PreparedDataset,
    Sample,
    evenly_spaced,
    lookup_table,
    open_dataset,
    read_image,
    read_train_ids,
    resize_image,
)
from udaseg.errors import CheckpointError, DataError
from udaseg.evaluation import (
    COLDEST,
    HOTTEST,
    Trust,
    fit_temperature,
    logits_at,
    predict_logits,
    trust,
    whole_size,
)
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress, percent

log = logging.getLogger(__name__)

_PIXELS = 400_000
_PIXELS_EACH = 20_000
_MIXED = 0.65
_ONLY_LOOKED_AT = "target labels, only looked at: the temperature was not fitted to them"


@dataclass(frozen=True)
class _Pixels:
    """Logits (N, K) of some pixels and their labels (N,), and where they are from."""

    words: str
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Row:
    """One line of the table: how far confidence can be believed there, before and after."""

    words: str
    before: Trust
    after: Trust


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
    """Fit a temperature, keep it in the run for `predict`, and say what it is worth.

    Args:
        run: Run folder or checkpoint.
        on: `source` fits to the source's labels, its `val` split where there is one; `pseudo` to
            what the network says of unlabelled target images, when it sees mixtures of them.
        images: Most images to look at in each set.
        weights: `student` or `teacher`.
        format: `table` or `json`.
        device: Where to compute.
        root: Where prepared data lie.

    Raises:
        CheckpointError: There is no such network, or its outputs are not finite.
        DataError: The images are not there, or no pixel has a label.
    """
    loaded = build.load_run(run, weights=weights, device=device)
    log.info("%s, step %d, %s", printable(str(loaded.checkpoint)), loaded.step, weights)
    fitted = _source(loaded, images, root) if on == "source" else _pseudo(loaded, images, root)
    temperature = fit_temperature(fitted.logits, fitted.labels)
    if not 1.01 * COLDEST < temperature < 0.99 * HOTTEST:
        log.warning(
            "the temperature is at the end of what is allowed (%g to %g): nearly every label here "
            "is right, or nearly every one is wrong; do not trust it",
            *(COLDEST, HOTTEST),
        )
    rows = [_row(fitted, temperature)]
    looked = _validation(loaded, images, root)
    if looked is not None:
        rows.append(_row(looked, temperature))
    document = _document(rows, temperature, on, loaded.step)
    path = write_calibration(loaded.checkpoint, weights, document)
    if format == "json":
        screen = Console(highlight=False, soft_wrap=True)
        screen.print(json.dumps({"weights": weights, **document}, indent=2), markup=False)
    else:
        _print(rows, temperature)
    log.info("written to %s; `udaseg predict` takes it from there", printable(str(path)))
    _say_if_worse(rows)


def _source(loaded: build.LoadedRun, images: int, root: Path) -> _Pixels:
    """Return pixels of the source with its labels, of images not trained on where there are any."""
    recipe = loaded.recipe.source
    dataset = open_dataset(recipe.data, root=root)
    split = "val" if dataset.splits.get("val") else recipe.split
    if split == recipe.split:
        log.warning(
            "%s has no split 'val': the temperature is fitted to images that the network was "
            "trained on, and will be too cold",
            dataset.name,
        )
    return _labelled(loaded, dataset, split, images)


def _validation(loaded: build.LoadedRun, images: int, root: Path) -> _Pixels | None:
    """Return pixels of the labelled images that the recipe names for people; None without any."""
    recipe = loaded.recipe.validation
    if recipe.data is None:
        return None
    try:
        dataset = open_dataset(recipe.data, root=root)
        return _labelled(loaded, dataset, recipe.split, images)
    except DataError as error:
        log.warning("%s; so nobody looks at how the temperature does on the target", error)
        return None


def _labelled(
    loaded: build.LoadedRun, dataset: PreparedDataset, split: str, images: int
) -> _Pixels:
    """Return pixels of labelled images and their labels."""
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so no temperature can be fitted to it")
    table = np.frombuffer(lookup_table(dataset.classes.train_ids_in(loaded.classes)), np.uint8)
    taken, labels = [], []
    samples, each = _some(dataset, split, images)
    with WorkProgress(f"calibrate {dataset.name}", len(samples)) as progress:
        for number, sample in enumerate(samples):
            truth = table[read_train_ids(dataset.label_path(sample))]
            seen = _seen(loaded, read_image(dataset.image_path(sample)))
            size = (truth.shape[0], truth.shape[1])
            chosen = _places(np.flatnonzero(truth != IGNORE), each, seed=number)
            rows, columns = np.divmod(chosen, size[1])
            logits = predict_logits(loaded.segmenter, seen)
            taken.append(logits_at(logits, size, rows, columns).cpu())
            labels.append(torch.from_numpy(truth[rows, columns].astype(np.int64)))
            progress.advance()
    return _pixels(loaded, f"{dataset.name} {split}", taken, labels)


def _pseudo(loaded: build.LoadedRun, images: int, root: Path) -> _Pixels:
    """Return pixels of mixtures of two target images, with the labels of the stronger one.

    A network agrees with its own labels, and a student with those of its teacher, far more often
    than either is right. Of a mixture it is wrong about as it is wrong of a target image.

    Reference: Hu et al., Pseudo-Calibration: Improving Predictive Uncertainty Estimation in
    Unsupervised Domain Adaptation, 2023 (arXiv 2307.07489).
    Differs: pixels instead of images; the partner is the image half the set away, not a random one.
    """
    recipe = loaded.recipe.target
    dataset = open_dataset(recipe.data, root=root)
    taken, labels = [], []
    samples, each = _some(dataset, recipe.split, images)
    with WorkProgress(f"calibrate {dataset.name}", len(samples)) as progress:
        for number, sample in enumerate(samples):
            partner = samples[(number + len(samples) // 2) % len(samples)]
            strong, weak = (
                _seen(loaded, read_image(dataset.image_path(one))) for one in (sample, partner)
            )
            size = (strong.shape[-2], strong.shape[-1])
            if weak.shape != strong.shape:
                weak = F.interpolate(weak, size, mode="bilinear", align_corners=False)
            chosen = _places(np.arange(size[0] * size[1]), each, seed=number)
            rows, columns = np.divmod(chosen, size[1])
            alone = predict_logits(loaded.segmenter, strong)
            mixed = predict_logits(loaded.segmenter, strong.lerp(weak, 1 - _MIXED))
            taken.append(logits_at(mixed, size, rows, columns).cpu())
            labels.append(logits_at(alone, size, rows, columns).argmax(1).cpu())
            progress.advance()
    return _pixels(loaded, f"{dataset.name} {recipe.split}, mixed", taken, labels)


def _some(dataset: PreparedDataset, split: str, images: int) -> tuple[list[Sample], int]:
    """Return evenly spaced images of a split, and how many pixels to take of each.

    Raises:
        DataError: There are none.
    """
    everything = dataset.split(split)
    if not everything:
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    samples = [everything[place] for place in evenly_spaced(len(everything), images)]
    return samples, min(_PIXELS_EACH, max(1, _PIXELS // len(samples)))


def _pixels(
    loaded: build.LoadedRun, words: str, taken: Sequence[Tensor], labels: Sequence[Tensor]
) -> _Pixels:
    """Return all pixels together.

    Raises:
        DataError: There are none.
        CheckpointError: Logits are not finite.
    """
    logits, classes = torch.cat(list(taken)), torch.cat(list(labels))
    if len(classes) == 0:
        raise DataError(f"{words}: no labelled pixel of a class that the network knows")
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f"{loaded.checkpoint}: its outputs are not finite; it has diverged")
    return _Pixels(words, logits, classes)


def _seen(loaded: build.LoadedRun, image: NDArray[np.uint8]) -> Tensor:
    """Return an image (1, 3, h, w) in [0, 1] at the size that `predict` shows it."""
    size = whole_size((image.shape[0], image.shape[1]), trained_size(loaded.recipe))
    shown = torch.from_numpy(resize_image(image, size)).to(loaded.device)
    return shown.permute(2, 0, 1)[None].float() / 255


def _places(candidates: NDArray[np.int64], most: int, *, seed: int) -> NDArray[np.int64]:
    """Return at most `most` of the candidates, the same in every run."""
    few = min(most, len(candidates))
    return np.random.default_rng(seed).choice(candidates, few, replace=False)


def _row(pixels: _Pixels, temperature: float) -> _Row:
    before = trust(pixels.logits, pixels.labels)
    return _Row(pixels.words, before, trust(pixels.logits, pixels.labels, temperature))


def _document(rows: Sequence[_Row], temperature: float, on: str, step: int) -> dict[str, Any]:
    """Return everything as JSON values."""
    written = [
        {"data": each.words, "before": asdict(each.before), "after": asdict(each.after)}
        for each in rows
    ]
    document: dict[str, Any] = {
        "temperature": temperature,
        "step": step,
        "udaseg": __version__,
        "fitted": {"on": on, **written[0]},
    }
    if len(written) > 1:
        document["looked_at"] = {"note": _ONLY_LOOKED_AT, **written[1]}
    return document


def _print(rows: Sequence[_Row], temperature: float) -> None:
    table = Table(title=f"temperature {temperature:.3f}", title_justify="left")
    table.add_column("pixels of")
    for name in ("", "accuracy %", "confidence %", "ECE %", "NLL"):
        table.add_column(name, justify="right")
    for row in rows:
        for when, found in (("before", row.before), ("after", row.after)):
            first = row.words if when == "before" else f"{found.pixels:,} of them"
            numbers = (found.accuracy, found.confidence, found.error)
            table.add_row(printable(first), when, *map(percent, numbers), f"{found.nll:.3f}")
    console = Console(highlight=False)
    console.print(table)
    if len(rows) > 1:
        console.print(f"{rows[1].words}: {_ONLY_LOOKED_AT}", markup=False, soft_wrap=True)


def _say_if_worse(rows: Sequence[_Row]) -> None:
    """Warn where the temperature moved confidence away from accuracy on the target."""
    for row in rows[1:]:
        if row.after.error > row.before.error:
            log.warning(
                "on %s the calibration error rises from %s to %s %%: this temperature misleads "
                "there; predict with --uncalibrated",
                *(row.words, percent(row.before.error), percent(row.after.error)),
            )
