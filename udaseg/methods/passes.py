"""Passes over whole datasets between two stages: prototypes, thresholds, pseudo-labels.

Each rank processes its share of the images, without padding. Sums are over all ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from udaseg.data.datasets.index import Sample
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.pseudo_labels import write_pseudo_label
from udaseg.distributed import all_reduce_sum, rank, world_size
from udaseg.methods.contrast.prototypes import image_means
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.views import labelled_view
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import Segmenter, SegmenterOutput, evaluation_mode

ProgressCallback = Callable[[int, int], None]
"""Called after each image with the number done on this rank and the total of all ranks."""

BINS = 10_000
"""Bins of a confidence histogram."""


@torch.no_grad()
def collect_prototypes(
    student: Segmenter,
    source: CropSource,
    num_classes: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> tuple[Tensor, Tensor]:
    """Return initial prototypes (K, D) float64 from labelled source images, and seen (K,).

    A prototype is the mean over the images that have correctly predicted cells of the class; see
    `image_means`. Crops and mirroring of `source` are not applied.

    Reference:
        Xie et al., SPCL (2021), initialisation.
    """
    # float64, so a pass that is split over processes gives the same prototypes
    sums = torch.zeros(num_classes, student.feature_channels, dtype=torch.float64)
    images = torch.zeros(num_classes, dtype=torch.float64)
    with evaluation_mode(student):
        for number, sample in enumerate(_rank_samples(source), 1):
            image, labels = source.read(sample)
            assert labels is not None
            segmented: SegmenterOutput = student(image_batch([image], device))
            view = labelled_view(segmented, torch.from_numpy(labels)[None].to(device))
            means, present = image_means(view, num_classes)
            sums += means.cpu()
            images += present.cpu()
            on_progress(number, len(source.samples))
    sums, images = all_reduce_sum(sums), all_reduce_sum(images)
    return sums / images.clamp_min(1)[:, None], images > 0


@torch.no_grad()
def collect_confidence(
    student: Segmenter,
    target: CropSource,
    num_classes: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> Tensor:
    """Return a histogram (K, BINS) of the confidence in each predicted class; read no label."""
    counts = torch.zeros(num_classes, BINS, dtype=torch.int64)
    for number, (_, labels, confidence) in enumerate(_predict_samples(student, target, device), 1):
        counts += confidence_histogram(labels, confidence, num_classes).cpu()
        on_progress(number, len(target.samples))
    return all_reduce_sum(counts)


def confidence_histogram(labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Return the pixels (K, BINS) of each class with a confidence in [b / BINS, (b + 1) / BINS)."""
    bins = (confidence.flatten() * BINS).long().clamp_(0, BINS - 1)
    slots = labels.flatten().long() * BINS + bins
    return torch.bincount(slots, minlength=num_classes * BINS).view(num_classes, BINS)


def confidence_thresholds(histogram: Tensor, *, quantile: float, cap: float) -> Tensor:
    """Return min(quantile, cap) of each class, (K,) float64; 0 if it was never predicted.

    The quantile is the lower edge of its bin.

    Reference:
        Xie et al., SPCL (2021), pseudo-labels: median and 0.9.
    """
    reached = histogram.cumsum(1)
    total = reached[:, -1]
    # rounded down, as for a lower median; the smallest bin that holds this position is returned
    position = ((total - 1).clamp_min(0).double() * quantile).floor().long()
    bins = (reached <= position[:, None]).sum(1).clamp_max(BINS - 1)
    return torch.where(total > 0, bins.double() / BINS, 0.0).clamp_max(cap)


@torch.no_grad()
def write_pseudo_labels(
    student: Segmenter,
    target: CropSource,
    thresholds: Tensor,
    folder: Path,
    device: torch.device,
    on_progress: ProgressCallback,
) -> Tensor:
    """Write a pseudo-label PNG for each target image; return the kept pixels of each class (K,).

    The PNGs have the size at which `target` reads images. A pixel below its class's threshold
    becomes `IGNORE`.
    """
    kept = torch.zeros(len(thresholds), dtype=torch.int64)
    samples = _predict_samples(student, target, device)
    for number, (sample, predicted, confidence) in enumerate(samples, 1):
        labels = threshold_labels(predicted, confidence, thresholds).cpu()
        kept += torch.bincount(labels.flatten(), minlength=IGNORE + 1)[: len(kept)]
        write_pseudo_label(folder, sample, labels.numpy())
        on_progress(number, len(target.samples))
    # the sum waits for all ranks, so every PNG is written when this returns
    return all_reduce_sum(kept)


def threshold_labels(
    labels: Tensor, confidence: Tensor, thresholds: Tensor | Sequence[float]
) -> Tensor:
    """Return `labels`, with `IGNORE` where the confidence is below the threshold of the class."""
    limits = torch.as_tensor(thresholds, dtype=torch.float64, device=labels.device)
    confident = confidence.double() >= limits[labels.long()]
    return labels.masked_fill(~confident, IGNORE)


def _predict_samples(
    student: Segmenter, target: CropSource, device: torch.device
) -> Iterator[tuple[Sample, Tensor, Tensor]]:
    """Yield each sample with the student's labels (H, W) uint8 and confidence (H, W)."""
    with evaluation_mode(student):
        for sample in _rank_samples(target):
            image = target.read(sample)[0]
            segmented: SegmenterOutput = student(image_batch([image], device))
            labels, confidence = pseudo_labels(segmented.logits, image.shape[:2])
            yield sample, labels[0], confidence[0]


def _rank_samples(crops: CropSource) -> Sequence[Sample]:
    return crops.samples[rank() :: world_size()]
