"""Predict the same images with several runs, for the images and confidence of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udaseg import build
from udaseg.commands.scoring import trained_size
from udaseg.data import (
    IGNORE,
    ClassSpace,
    PreparedDataset,
    Sample,
    evenly_spaced,
    lookup_table,
    read_image,
    read_train_ids,
    resize_image,
)
from udaseg.evaluation import Calibration, ConfusionMatrix, label_image, network_size
from udaseg.reporting import (
    Layer,
    Reliability,
    Shot,
    WorkProgress,
    mask_uri,
    percent,
    photo_uri,
    shrunk,
)

Pixels = NDArray[np.uint8]


@dataclass
class _Seen:
    """One evaluated image, downscaled; `score` is that of the last run."""

    name: str
    photo: Pixels
    truth: Pixels | None
    masks: dict[str, Pixels] = field(default_factory=dict)
    score: float = float("nan")


@dataclass
class Looked:
    """Images and confidence for a report page.

    Attributes:
        shots: Images to show.
        reliability: Reliability of each run over all evaluated images.
        words: Caption that says how the images were chosen.
    """

    shots: list[Shot] = field(default_factory=list)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    words: str = ""


def look(
    runs: Mapping[str, build.LoadedRun],
    dataset: PreparedDataset,
    split: str,
    *,
    show: int,
    scan: int,
) -> Looked:
    """Return some images with their predictions, and the reliability of each run's confidence.

    With labels, the worst images have the lowest mIoU of the last run; without, its lowest mean
    confidence. Half of the images shown are evenly spaced, the other half are the worst of the
    remaining ones.

    Args:
        runs: Networks by name; the worst images are those of the last one.
        dataset: With or without labels.
        split: Split of the dataset.
        show: Images to show, at least 1.
        scan: Maximum number of images to evaluate, evenly spaced.
    """
    samples = dataset.split(split)
    chosen = [samples[position] for position in evenly_spaced(len(samples), scan)]
    counts = {name: Calibration.empty() for name in runs}
    evaluated = []
    with WorkProgress("report", len(chosen)) as progress:
        for sample in chosen:
            evaluated.append(_look(runs, dataset, sample, counts))
            progress.advance()
    labelled = all(item.truth is not None for item in evaluated)
    measure = f"{'mIoU' if labelled else 'mean confidence'} of {list(runs)[-1]}"
    spaced = evenly_spaced(len(evaluated), max(1, show // 2))
    others = [index for index in range(len(evaluated)) if index not in spaced]
    worst = sorted(others, key=lambda index: np.nan_to_num(evaluated[index].score, nan=2.0))
    shots = []
    for index in [*spaced, *worst[: max(0, show - len(spaced))]]:
        prefix = "" if index in spaced else "among the worst: "
        reason = f"{prefix}{measure} {percent(evaluated[index].score)} %"
        shots.append(_shot(evaluated[index], runs, dataset.classes, reason))
    caption = (
        f"{len(chosen)} of {len(samples)} images of {dataset.name}, {split}, were evaluated. "
        f"Shown are evenly spaced images, then those with the lowest {measure}."
    )
    return Looked(shots, {name: _reliability(item) for name, item in counts.items()}, caption)


def _look(
    runs: Mapping[str, build.LoadedRun],
    dataset: PreparedDataset,
    sample: Sample,
    counts: Mapping[str, Calibration],
) -> _Seen:
    """Predict an image with every run, and add its confidence to `counts`."""
    image = read_image(dataset.image_path(sample))
    stored = (image.shape[0], image.shape[1])
    result = _Seen(sample.image, shrunk(image, mask=False), None)
    truth, size = None, stored
    if dataset.classes is not None and sample.label is not None:
        truth = read_train_ids(dataset.label_path(sample))
        size = (truth.shape[0], truth.shape[1])
        result.truth = shrunk(truth, mask=True)
    for name, run in runs.items():
        resized = resize_image(image, network_size(stored, trained_size(run.recipe)))
        labels, confidence = label_image(
            run.segmenter, resized, size, device=run.device, confidence=True
        )
        assert confidence is not None
        run_truth = None
        result.score = float(confidence.mean())
        if truth is not None and dataset.classes is not None:
            table = lookup_table(dataset.classes.train_ids_in(run.classes))
            run_truth = np.frombuffer(table, np.uint8)[truth]
            matrix = ConfusionMatrix(len(run.classes), ignore=IGNORE)
            matrix.update(labels, run_truth)
            result.score = matrix.mean_iou()
        counts[name].update(confidence, labels, run_truth, ignore=IGNORE)
        result.masks[name] = shrunk(labels, mask=True)
    return result


def _shot(
    evaluated: _Seen,
    runs: Mapping[str, build.LoadedRun],
    truth_classes: ClassSpace | None,
    reason: str,
) -> Shot:
    layers = [Layer("image", photo_uri(evaluated.photo), mask=False)]
    for name, labels in evaluated.masks.items():
        layers.append(Layer(name, mask_uri(labels, runs[name].classes.colors), mask=True))
    if evaluated.truth is not None and truth_classes is not None:
        layers.append(Layer("truth", mask_uri(evaluated.truth, truth_classes.colors), mask=True))
    return Shot(evaluated.name, reason, layers)


def _reliability(counts: Calibration) -> Reliability:
    return Reliability(
        pixels=counts.pixels.tolist(),
        labelled=counts.labelled.tolist(),
        correct=counts.correct.tolist(),
        confidence=counts.confidence.tolist(),
        error=counts.error(),
    )
