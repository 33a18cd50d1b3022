"""Training batches as a function of the step: no sampler or loader state exists to be saved."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from udaseg.data.balanced import SUB_EPOCH, balanced_order
from udaseg.data.crops import Crops
from udaseg.data.index import Sample
from udaseg.errors import DataError

_SOURCE, _TARGET = 0, 1
_PREFIX = f"{DataError.__module__}.{DataError.__qualname__}: "


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        step: Number of the step, from 0.
        progress: Share of this part of the run that is done, in [0, 1).
        seed: Seeds everything random in the step on this rank.
        source_images: (B, 3, H, W) uint8 RGB; (0, 3, 1, 1) when only the target is trained on.
        source_labels: (B, H, W) uint8 train ids with `IGNORE`.
        target_images: (B, 3, H, W) uint8 RGB; None when only the source is trained on.
        pseudo_labels: (B, H, W) uint8 on the target images, made before this part of the run;
            never the target's truth. None when the part learns from none.
    """

    step: int
    progress: float
    seed: int
    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor | None
    pseudo_labels: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; bytes travel, floats are made there."""
        target, pseudo = self.target_images, self.pseudo_labels
        return replace(
            self,
            pseudo_labels=None if pseudo is None else pseudo.to(device, non_blocking=True),
            source_images=self.source_images.to(device, non_blocking=True),
            source_labels=self.source_labels.to(device, non_blocking=True),
            target_images=None if target is None else target.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; the loader calls this by name."""
        target, pseudo = self.target_images, self.pseudo_labels
        return replace(
            self,
            pseudo_labels=None if pseudo is None else pseudo.pin_memory(),
            source_images=self.source_images.pin_memory(),
            source_labels=self.source_labels.pin_memory(),
            target_images=None if target is None else target.pin_memory(),
        )


class TrainingBatches(Dataset[Batch]):
    """Batch i of a run, made from (seed, i, rank) alone.

    Every epoch visits each file once, in an order of its own; source and target run through their
    files independently, so neither ends when the other does.

    Args:
        source: Labelled crops, or None.
        target: Unlabelled crops, or None.
        batch_source: Source images a batch on each rank.
        batch_target: Target images a batch on each rank.
        steps: Steps of the run when this part of it is over.
        seed: Of the run.
        rank: Of this process.
        world_size: Number of processes.
        begin: Steps of the run before this part; only `progress` counts from it.

    Raises:
        DataError: A split without images, or without the counts that its sampling needs.
        ValueError: Class-balanced sampling of a target, whose classes must not be known.
    """

    def __init__(
        self,
        source: Crops | None,
        target: Crops | None,
        *,
        batch_source: int,
        batch_target: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        begin: int = 0,
    ) -> None:
        for crops in (source, target):
            if crops is not None and not crops.samples:
                raise DataError(f"{crops.dataset.name}: split '{crops.split}' has no images")
        if target is not None and target.sampling != "uniform":
            raise ValueError(f"a target is sampled uniformly, got {target.sampling}")
        self.source, self.target = source, target
        self.batch_source, self.batch_target = batch_source, batch_target
        self.steps, self.seed, self.rank, self.world_size = steps, seed, rank, world_size
        self.begin = begin
        balanced = source is not None and source.sampling == "class_balanced"
        # the order of the sub-epoch at hand; made again from seed and lap wherever it is needed
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._present = source.balanced() if balanced and source is not None else None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step` on this rank."""
        source_images, source_labels = _nothing()
        if self.source is not None:
            pairs = self._draw(self.source, _SOURCE, self.batch_source, step)
            source_images = _image_tensor([image for image, _ in pairs])
            source_labels = _label_tensor([label for _, label in pairs])
        target = pseudo = None
        if self.target is not None:
            drawn = self._draw(self.target, _TARGET, self.batch_target, step)
            target = _image_tensor([image for image, _ in drawn])
            if self.target.pseudo_labels is not None:
                pseudo = _label_tensor([label for _, label in drawn])
        entropy = np.random.SeedSequence([self.seed, step, self.rank])
        return Batch(
            step=step,
            progress=(step - self.begin) / (self.steps - self.begin),
            seed=int(entropy.generate_state(1, np.uint32)[0]),
            source_images=source_images,
            source_labels=source_labels,
            target_images=target,
            pseudo_labels=pseudo,
        )

    def _draw(
        self, crops: Crops, domain: int, size: int, step: int
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
        drawn = []
        for sample, epoch, position in self._chosen(crops, domain, size, step):
            rng = np.random.default_rng([self.seed, domain, epoch, position])
            drawn.append(crops.draw(sample, rng))
        return drawn

    def _chosen(
        self, crops: Crops, domain: int, size: int, step: int
    ) -> Iterator[tuple[Sample, int, int]]:
        """Yield the samples of a step on this rank, with the epoch and the position in it."""
        first = (step * self.world_size + self.rank) * size
        if domain == _SOURCE and self._present is not None:
            yield from self._balanced(crops, range(first, first + size))
            return
        for number in range(first, first + size):
            epoch, position = divmod(number, len(crops.samples))
            order = _epoch_order(self.seed, domain, epoch, len(crops.samples))
            yield crops.samples[order[position]], epoch, position

    def _balanced(self, crops: Crops, numbers: range) -> Iterator[tuple[Sample, int, int]]:
        for number in numbers:
            lap, position = divmod(number, SUB_EPOCH)
            if self._order is None or self._order[0] != lap:
                assert self._present is not None
                self._order = (lap, balanced_order(self._present, seed=self.seed, lap=lap))
            yield crops.samples[self._order[1][position]], lap, position

    def digests(self) -> dict[str, str]:
        """Return a digest of the file names of each domain; the order of batches hangs on them."""
        found = {}
        for word, crops in (("source", self.source), ("target", self.target)):
            if crops is not None:
                names = "\n".join(sample.image for sample in crops.samples)
                found[word] = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        return found

    def names(self, step: int) -> list[str]:
        """Return the files of the batch of `step` on this rank, to be named in an error."""
        found = []
        parts = (
            (self.source, _SOURCE, self.batch_source),
            (self.target, _TARGET, self.batch_target),
        )
        for crops, domain, size in parts:
            if crops is not None:
                chosen = self._chosen(crops, domain, size, step)
                found += [str(crops.dataset.image_path(sample)) for sample, _, _ in chosen]
        return found


def batches_from(
    dataset: TrainingBatches, first: int, *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to the end, decoded in `workers` processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, len(dataset)),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_prepare_worker,
        multiprocessing_context="spawn" if workers else None,
    )
    try:
        yield from loader
    except DataError as error:
        # a worker's error arrives with its traceback as text; the last line is what we said
        raise DataError(str(error).strip().splitlines()[-1].removeprefix(_PREFIX)) from error


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, domain: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, domain, epoch]).permutation(count)


def _image_tensor(images: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _label_tensor(labels: list[NDArray[np.uint8] | None]) -> Tensor:
    return torch.from_numpy(np.stack([label for label in labels if label is not None]))


def _nothing() -> tuple[Tensor, Tensor]:
    images = torch.empty((0, 3, 1, 1), dtype=torch.uint8)
    return images, torch.empty((0, 1, 1), dtype=torch.uint8)


def _prepare_worker(_: int) -> None:
    import signal

    # one thread a worker, and Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
