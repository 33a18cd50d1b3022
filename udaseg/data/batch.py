"""Training batches as a function of the step: no sampler or loader state exists to be saved."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from udaseg.data.balanced import SUB_EPOCH, balanced_order
from udaseg.data.images import read_image, read_train_ids
from udaseg.data.index import PreparedDataset, Sample
from udaseg.data.pseudo_labels import pseudo_label_path
from udaseg.data.transforms import cover, random_crop, random_mirror, resize_image, resize_labels
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


@dataclass(frozen=True)
class Crops:
    """Random crops of one domain.

    Attributes:
        dataset: Where the images are.
        split: Which of its splits.
        resize: (height, width) before the crop; None keeps the file's size.
        crop: (height, width) of the crop.
        flip: Mirror half of the crops.
        labelled: Whether labels are read at all; never for a target.
        pseudo_labels: Folder of pseudo-labels that take the place of labels; see
            `pseudo_label_path`. They are brought to the image's size by nearest neighbour.
        scale: Range of a random factor of both sides before the crop.
        sampling: `uniform`, or `class_balanced` by the classes that the index counts.

    Raises:
        ValueError: Pseudo-labels besides labels.
    """

    dataset: PreparedDataset
    split: str
    resize: tuple[int, int] | None
    crop: tuple[int, int]
    flip: bool
    labelled: bool
    pseudo_labels: Path | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    sampling: Literal["uniform", "class_balanced"] = "uniform"

    def __post_init__(self) -> None:
        if self.labelled and self.pseudo_labels is not None:
            raise ValueError(f"labelled crops take no pseudo-labels, got {self.pseudo_labels}")

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The files that can be drawn."""
        return self.dataset.split(self.split)

    def draw(
        self, sample: Sample, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return one image crop (H, W, 3) and, when labelled, its labels (H, W)."""
        # photos without labels are turned as a viewer shows them; labels lie as files are stored
        image = read_image(self.dataset.image_path(sample), upright=not self.labelled)
        labels = read_train_ids(self.dataset.label_path(sample)) if self.labelled else None
        if labels is not None and labels.shape != image.shape[:2]:
            raise DataError(
                f"{self.dataset.image_path(sample)}: image {image.shape[1]}x{image.shape[0]}, "
                f"label {labels.shape[1]}x{labels.shape[0]}; run `udaseg prepare` again"
            )
        if self.pseudo_labels is not None:
            labels = self._pseudo_labels(sample)
        if self.resize is not None:
            image = resize_image(image, self.resize)
        if self.scale != (1.0, 1.0):
            image = resize_image(image, _scaled(image.shape, rng.uniform(*self.scale)))
        if labels is None:
            image = cover(image, self.crop)
        else:
            labels = resize_labels(labels, (image.shape[0], image.shape[1]))
        image, labels = random_crop(image, labels, self.crop, rng)
        return random_mirror(image, labels, rng) if self.flip else (image, labels)

    def _pseudo_labels(self, sample: Sample) -> NDArray[np.uint8]:
        assert self.pseudo_labels is not None
        path = pseudo_label_path(self.pseudo_labels, sample)
        try:
            return read_train_ids(path)
        except DataError as error:
            raise DataError(
                f"{path}: not a readable pseudo-label; continue with --resume, which makes it again"
            ) from error

    def balanced(self) -> NDArray[np.bool_]:
        """Return which sample holds which class, (N, K).

        Raises:
            DataError: The index has no counts, or nothing but zeros.
        """
        if any(not sample.pixels for sample in self.samples):
            raise DataError(
                f"{self.dataset.name}: its index counts no classes, which class-balanced sampling "
                "needs; run `udaseg prepare` again"
            )
        present = np.array([sample.pixels for sample in self.samples]) > 0
        if not present.any():
            raise DataError(
                f"{self.dataset.name}: no label of split '{self.split}' holds any class"
            )
        return present


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


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _prepare_worker(_: int) -> None:
    import signal

    # one thread a worker, and Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
