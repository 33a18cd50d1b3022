"""Passes over whole datasets between two stages: prototypes, thresholds, pseudo-labels.

Each rank processes its share of the images, without padding. Sums are over all ranks. They stay on
the device until the end, and files are read and written in threads, so a GPU is not waited for.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from udaseg.data.datasets.index import Sample
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading import threads
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.pseudo_labels import write_pseudo_label
from udaseg.distributed import all_reduce_sum, rank, to_device, world_size
from udaseg.methods.contrast.prototypes import class_sums, image_means
from udaseg.methods.pixel_loss import pseudo_labels
from udaseg.methods.views import flatten_cells, labelled_view, labels_on_cells
from udaseg.models.pixels import image_batch
from udaseg.models.segmenter import Segmenter, SegmenterOutput, evaluation_mode

ProgressCallback = Callable[[int, int], None]
"""Called after each image with the number done on this rank and the total of all ranks."""

BINS = 10_000
"""Bins of a confidence histogram."""

_BATCH_SIZES = {"cuda": 4}
"""Images of a forward pass; one on a CPU, where a batch is no faster and is rounded otherwise."""

_WRITE_LIMIT = threads.Limit(8)


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

    def of_image(output: SegmenterOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        return image_means(labelled_view(output, labels), num_classes)

    return _class_means(of_image, student, source, source.samples, num_classes, device, on_progress)


@torch.no_grad()
def collect_anchors(
    network: Segmenter,
    source: CropSource,
    samples: Sequence[Sample],
    num_classes: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> tuple[Tensor, Tensor]:
    """Return the mean unit features (K, D) float64 of labelled source images, and seen (K,).

    The mean is over all cells of the class. Crops and mirroring of `source` are not applied.
    """

    def of_image(output: SegmenterOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        cells = labels_on_cells(labels, output).flatten()
        return class_sums(flatten_cells(output.features), cells, num_classes)

    return _class_means(of_image, network, source, samples, num_classes, device, on_progress)


def _class_means(
    of_image: Callable[[SegmenterOutput, Tensor], tuple[Tensor, Tensor]],
    network: Segmenter,
    source: CropSource,
    samples: Sequence[Sample],
    num_classes: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> tuple[Tensor, Tensor]:
    """Return the mean (K, D) float64 of each class over labelled images, and seen (K,).

    `of_image` returns the sum (K, D) and the number (K,) that an image adds to its classes.
    """
    # float64, so a pass that is split over processes gives the same means
    shape = num_classes, network.feature_channels
    sums = torch.zeros(shape, dtype=torch.float64, device=device)
    counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(read: _ReadSample, output: SegmenterOutput) -> None:
        assert read.labels is not None
        labels = to_device(torch.from_numpy(read.labels)[None], device)
        more_sums, more_counts = of_image(output, labels)
        sums.add_(more_sums)
        counts.add_(more_counts)

    _for_each_image(add, network, source, device, on_progress, samples)
    total, count = all_reduce_sum(sums.cpu()), all_reduce_sum(counts.cpu())
    return total / count.clamp_min(1)[:, None], count > 0


@torch.no_grad()
def collect_confidence(
    student: Segmenter,
    target: CropSource,
    num_classes: int,
    device: torch.device,
    on_progress: ProgressCallback,
    *,
    at_file_size: bool = False,
) -> Tensor:
    """Return a histogram (K, BINS) of the confidence in each predicted class; read no label.

    Pixels are counted at the size at which `target` reads images, or at that of their files.
    """
    counts = torch.zeros(num_classes, BINS, dtype=torch.int64, device=device)

    def add(read: _ReadSample, output: SegmenterOutput) -> None:
        labels, confidence = pseudo_labels(
            output.logits, read.size(at_file_size), align_corners=student.align_corners
        )
        counts.add_(confidence_histogram(labels, confidence, num_classes))

    _for_each_image(add, student, target, device, on_progress)
    return all_reduce_sum(counts.cpu())


def confidence_histogram(labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Return the pixels (K, BINS) of each class with a confidence in [b / BINS, (b + 1) / BINS)."""
    bins = (confidence.flatten() * BINS).long().clamp_(0, BINS - 1)
    slots = labels.flatten().long() * BINS + bins
    counts = torch.zeros(num_classes * BINS, dtype=torch.int64, device=slots.device)
    # not bincount, which reads the largest slot and waits for the device
    counts.scatter_add_(0, slots, counts.new_ones(()).expand_as(slots))
    return counts.view(num_classes, BINS)


def confidence_thresholds(
    histogram: Tensor,
    *,
    quantile: float,
    cap: float,
    rank: Literal["lower", "released"] = "lower",
) -> Tensor:
    """Return min(quantile, cap) of each class, (K,) float64; 0 if it was never predicted.

    The quantile is the lower edge of its bin. `rank` is that of `PseudoLabelling`.

    Reference:
        Xie et al., SPCL (2021), pseudo-labels: median and 0.9.
    """
    reached = histogram.cumsum(1)
    total = reached[:, -1]
    last = (total - 1).clamp_min(0)
    if rank == "released":  # as numpy rounds, half to even
        position = torch.minimum((total.double() * quantile).round().long(), last)
    else:
        position = (last.double() * quantile).floor().long()
    # the smallest bin that holds this position
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
    *,
    at_file_size: bool = False,
) -> Tensor:
    """Write a pseudo-label PNG for each target image; return the kept pixels of each class (K,).

    The PNGs have the size at which `target` reads images, or that of their files. A pixel below its
    class's threshold becomes `IGNORE`.
    """
    pixels = torch.zeros(IGNORE + 1, dtype=torch.int64)
    limits = to_device(thresholds.double(), device)

    def write(sample: Sample, on_host: Callable[[], Tensor]) -> None:
        labels = on_host()
        pixels.add_(torch.bincount(labels.flatten(), minlength=len(pixels)))
        write_pseudo_label(folder, sample, labels.numpy())

    def label(read: _ReadSample, output: SegmenterOutput) -> None:
        (predicted,), (confidence,) = pseudo_labels(
            output.logits, read.size(at_file_size), align_corners=student.align_corners
        )
        labels = threshold_labels(predicted, confidence, limits)
        writing.submit(partial(write, read.sample, _copy_to_host(labels)))

    with threads.OrderedWork(_WRITE_LIMIT) as writing:
        _for_each_image(label, student, target, device, on_progress)
    # the sum waits for all ranks, so every PNG is written when this returns
    return all_reduce_sum(pixels[: len(thresholds)])


def threshold_labels(
    labels: Tensor, confidence: Tensor, thresholds: Tensor | Sequence[float]
) -> Tensor:
    """Return `labels`, with `IGNORE` where the confidence is below the threshold of the class."""
    limits = torch.as_tensor(thresholds, dtype=torch.float64, device=labels.device)
    confident = confidence.double() >= limits[labels.long()]
    return labels.masked_fill(~confident, IGNORE)


@dataclass(frozen=True)
class _ReadSample:
    sample: Sample
    image: Pixels
    labels: Pixels | None

    def size(self, at_file_size: bool) -> tuple[int, int]:
        """Return the (height, width) of the image as it was read, or of its upright file."""
        sample = self.sample
        return (sample.height, sample.width) if at_file_size else self.image.shape[:2]


def _for_each_image(
    act: Callable[[_ReadSample, SegmenterOutput], None],
    student: Segmenter,
    crops: CropSource,
    device: torch.device,
    on_progress: ProgressCallback,
    samples: Sequence[Sample] | None = None,
) -> None:
    """Call `act` with each image of this rank and the student's output for it, a batch of one.

    The images are `samples`, by default all.
    """
    batch_size, done = _BATCH_SIZES.get(device.type, 1), 0
    samples = crops.samples if samples is None else samples
    reading = threads.read_ahead(
        lambda sample: _ReadSample(sample, *crops.read(sample)),
        samples[rank() :: world_size()],
        threads.Limit(threads.ITEMS_AHEAD + batch_size),
    )
    batches = threads.batches_of_one_size(
        reading, lambda read: read.image.shape, threads.Limit(batch_size)
    )
    with evaluation_mode(student), contextlib.closing(reading):
        for batch in batches:
            output: SegmenterOutput = student(image_batch([read.image for read in batch], device))
            maps = (output.logits.chunk(len(batch)), output.features.chunk(len(batch)))
            for read, logits, features in zip(batch, *maps, strict=True):
                act(read, SegmenterOutput(logits, features, None))
                done += 1
                on_progress(done, len(samples))


def _copy_to_host(labels: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; what is returned waits for it, in any thread."""
    copy = labels.to("cpu", non_blocking=True)
    if not labels.is_cuda:
        return lambda: copy
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's own
    event.record(torch.cuda.current_stream(labels.device))

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait
