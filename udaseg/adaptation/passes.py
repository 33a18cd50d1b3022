"""Passes over whole datasets between two stages: prototypes, thresholds, pseudo-labels.

Each rank processes its share of the images, without padding. Sums are over all ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udaseg.adaptation.objective import cell_view, labels_on_cells, unit_range
from udaseg.adaptation.pixels import pseudo_labels
from udaseg.adaptation.self_labels import ConfidenceHistograms, kept_labels
from udaseg.contrast import PrototypeSums
from udaseg.data import IGNORE, Crops, Sample, write_pseudo_label
from udaseg.distributed import rank, sum_over_ranks, world_size
from udaseg.models import Segmented, Segmenter

Seen = Callable[[int, int], None]
"""Called after each image with the number done on this rank and the total of all ranks."""


@torch.no_grad()
def prototype_pass(
    student: Segmenter, source: Crops, num_classes: int, device: torch.device, seen: Seen
) -> PrototypeSums:
    """Return the prototype sums of one pass over whole labelled source images.

    Args:
        student: Used in evaluation mode; its mode is restored.
        source: Which images, and their size; crops and mirroring are not applied.
        num_classes: K.
        device: Device of the student.
        seen: Progress callback.
    """
    sums = PrototypeSums(num_classes, student.backbone.channels[1])
    with _evaluating(student):
        for number, sample in enumerate(_share(source), 1):
            image, labels = source.read(sample)
            if labels is None:
                raise ValueError("prototypes need labelled crops")
            segmented: Segmented = student(unit_range(_tensor(image).to(device)))
            cells = labels_on_cells(torch.from_numpy(labels)[None].to(device), segmented)
            view = cell_view(segmented, cells)
            sums.add(view.features[0], view.labels[0], view.predictions[0])
            seen(number, len(source.samples))
    sums.sums, sums.images = sum_over_ranks(sums.sums), sum_over_ranks(sums.images)
    return sums


@torch.no_grad()
def threshold_pass(
    student: Segmenter, target: Crops, num_classes: int, device: torch.device, seen: Seen
) -> ConfidenceHistograms:
    """Return confidence histograms of each predicted class over the target; read no label."""
    histograms = ConfidenceHistograms(num_classes)
    for number, (_, labels, confidence) in enumerate(_guesses(student, target, device), 1):
        histograms.add(labels, confidence)
        seen(number, len(target.samples))
    histograms.counts = sum_over_ranks(histograms.counts)
    return histograms


@torch.no_grad()
def pseudo_label_pass(
    student: Segmenter,
    target: Crops,
    thresholds: Tensor,
    folder: Path,
    device: torch.device,
    seen: Seen,
) -> Tensor:
    """Write a pseudo-label PNG for each target image; return the kept pixels of each class (K,).

    Args:
        student: Used in evaluation mode; its mode is restored.
        target: Which images, and the size at which they are predicted; the PNGs have that size.
        thresholds: (K,); a less confident pixel becomes `IGNORE`.
        folder: Output folder of the PNGs.
        device: Device of the student.
        seen: Progress callback.
    """
    kept = torch.zeros(len(thresholds), dtype=torch.int64)
    limits = thresholds.to(device)
    for number, (sample, predicted, confidence) in enumerate(_guesses(student, target, device), 1):
        labels = kept_labels(predicted, confidence, limits).cpu()
        counts = torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)
        kept += counts[: len(kept)]
        write_pseudo_label(folder, sample, labels.numpy())
        seen(number, len(target.samples))
    # the sum waits for all ranks, so every PNG is written when this returns
    return sum_over_ranks(kept)


def _guesses(
    student: Segmenter, target: Crops, device: torch.device
) -> Iterator[tuple[Sample, Tensor, Tensor]]:
    """Yield each sample with the student's labels (H, W) uint8 and confidence (H, W)."""
    with _evaluating(student):
        for sample in _share(target):
            image = _tensor(target.read(sample)[0])
            segmented: Segmented = student(unit_range(image.to(device)))
            size = (image.shape[-2], image.shape[-1])
            labels, confidence = pseudo_labels(segmented.logits, size)
            yield sample, labels[0], confidence[0]


def _share(crops: Crops) -> Sequence[Sample]:
    return crops.samples[rank() :: world_size()]


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


class _evaluating:  # noqa: N801 (used like the context managers of contextlib)
    """Context manager that puts a network into evaluation mode and restores its mode."""

    def __init__(self, network: Segmenter) -> None:
        self._network = network
        self._was_training = network.training

    def __enter__(self) -> None:
        self._network.eval()

    def __exit__(self, *_: object) -> None:
        self._network.train(self._was_training)
