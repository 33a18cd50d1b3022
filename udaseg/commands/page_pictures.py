"""The pictures and the confidence of a report page: what runs make of the same images."""

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
    """One image that was looked at, kept small; `score` is the last run's."""

    name: str
    photo: Pixels
    truth: Pixels | None
    masks: dict[str, Pixels] = field(default_factory=dict)
    score: float = float("nan")


@dataclass
class Looked:
    """What came of looking.

    Attributes:
        shots: Images to show.
        reliability: Of each run, over every image that was looked at.
        words: What the shots were chosen from.
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
    """Return pictures of some images and of the worst ones, and how far confidence holds.

    With labels the worst images have the lowest mIoU of the last run, else the lowest confidence.
    Half of the images shown are evenly spaced, the others are the worst of the rest.

    Args:
        runs: Networks by name; the last is the one whose worst images are shown.
        dataset: With or without labels.
        split: Which split of it.
        show: Images to show, at least 1.
        scan: Most images to look at, evenly spaced.
    """
    samples = dataset.split(split)
    chosen = [samples[place] for place in evenly_spaced(len(samples), scan)]
    counts = {name: Calibration.empty() for name in runs}
    seen = []
    with WorkProgress("report", len(chosen)) as progress:
        for sample in chosen:
            seen.append(_look(runs, dataset, sample, counts))
            progress.advance()
    labelled = all(each.truth is not None for each in seen)
    measure = f"{'mIoU' if labelled else 'mean confidence'} of {list(runs)[-1]}"
    spaced = evenly_spaced(len(seen), max(1, show // 2))
    others = [number for number in range(len(seen)) if number not in spaced]
    worst = sorted(others, key=lambda number: np.nan_to_num(seen[number].score, nan=2.0))
    shots = []
    for number in [*spaced, *worst[: max(0, show - len(spaced))]]:
        kind = "" if number in spaced else "among the worst: "
        why = f"{kind}{measure} {percent(seen[number].score)} %"
        shots.append(_shot(seen[number], runs, dataset.classes, why))
    words = (
        f"{len(chosen)} of {len(samples)} images of {dataset.name}, {split}, were looked at. "
        f"Shown are evenly spaced ones, then those with the lowest {measure}."
    )
    return Looked(shots, {name: _reliability(each) for name, each in counts.items()}, words)


def _look(
    runs: Mapping[str, build.LoadedRun],
    dataset: PreparedDataset,
    sample: Sample,
    counts: Mapping[str, Calibration],
) -> _Seen:
    """Return what every run makes of an image, and count its confidence."""
    image = read_image(dataset.image_path(sample))
    stored = (image.shape[0], image.shape[1])
    made = _Seen(sample.image, shrunk(image, mask=False), None)
    truth, size = None, stored
    if dataset.classes is not None and sample.label is not None:
        truth = read_train_ids(dataset.label_path(sample))
        size = (truth.shape[0], truth.shape[1])
        made.truth = shrunk(truth, mask=True)
    for name, run in runs.items():
        seen = resize_image(image, network_size(stored, trained_size(run.recipe)))
        labels, confidence = label_image(
            run.segmenter, seen, size, device=run.device, confidence=True
        )
        assert confidence is not None
        known = None
        made.score = float(confidence.mean())
        if truth is not None and dataset.classes is not None:
            table = lookup_table(dataset.classes.train_ids_in(run.classes))
            known = np.frombuffer(table, np.uint8)[truth]
            matrix = ConfusionMatrix(len(run.classes), ignore=IGNORE)
            matrix.update(labels, known)
            made.score = matrix.mean_iou()
        counts[name].update(confidence, labels, known, ignore=IGNORE)
        made.masks[name] = shrunk(labels, mask=True)
    return made


def _shot(
    seen: _Seen, runs: Mapping[str, build.LoadedRun], truth_classes: ClassSpace | None, why: str
) -> Shot:
    layers = [Layer("image", photo_uri(seen.photo), mask=False)]
    for name, labels in seen.masks.items():
        layers.append(Layer(name, mask_uri(labels, runs[name].classes.colors), mask=True))
    if seen.truth is not None and truth_classes is not None:
        layers.append(Layer("truth", mask_uri(seen.truth, truth_classes.colors), mask=True))
    return Shot(seen.name, why, layers)


def _reliability(counts: Calibration) -> Reliability:
    return Reliability(
        pixels=counts.pixels.tolist(),
        labelled=counts.labelled.tolist(),
        correct=counts.correct.tolist(),
        confidence=counts.confidence.tolist(),
        error=counts.error(),
    )
