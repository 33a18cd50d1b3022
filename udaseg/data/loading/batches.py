"""Training batches as a function of the step, so no sampler or loader state has to be saved."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.sampling import SamplingOrder
from udaseg.errors import DataError

_SOURCE, _TARGET = 0, 1

_MAX_REPLACEMENTS = 20
"""Replacement images to try for one that cannot be used."""

_Crop = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Batch:
    """The data of one training step.

    Attributes:
        step: Number of the step, from 0.
        progress: Completed share of the current stage, in [0, 1).
        seed: Seed of all random operations in the step, identical on every rank.
        source_images: (B, 3, H, W) uint8 RGB; (0, 3, 1, 1) when training on the target only.
        source_labels: (B, H, W) uint8 train ids with `IGNORE`.
        target_images: (B, 3, H, W) uint8 RGB; None when training on the source only.
        pseudo_labels: (B, H, W) uint8 labels of the target images, created before this stage;
            never the target's ground truth. None if the stage uses none.
        skipped: For each image that was drawn but replaced, the reason.
    """

    step: int
    progress: float
    seed: int
    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor | None
    pseudo_labels: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; transfers uint8, conversion to float happens there."""
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
class BatchOptions:
    """Sizes, order and faults of the batches of a stage.

    Attributes:
        batch_source: Source images per batch on each rank.
        batch_target: Target images per batch on each rank.
        steps: Step of the run at which this stage ends.
        seed: Seed of the run.
        rank: Rank of this process.
        world_size: Number of processes.
        first_step: Step of the run at which this stage begins; used only for `progress`.
        on_bad_sample: `fail` raises an error that names the image; `skip` replaces it by one chosen
            from the number of the draw, and adds the reason to `Batch.skipped`.
        worker_timeout: Seconds without a batch after which a loader process counts as hung; 0
            disables the limit.
    """

    batch_source: int
    batch_target: int
    steps: int
    seed: int
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    on_bad_sample: Literal["fail", "skip"] = "fail"
    worker_timeout: float = 300


class TrainingBatches(Dataset[Batch]):
    """Batches of a run, where batch i depends only on (seed, i, rank).

    The batches of all ranks in a step, concatenated, equal the batch of a single process with the
    same total size.

    Source and target iterate over their files independently (see `SamplingOrder`), so neither ends
    when the other does.

    Args:
        source: Labelled crops, or None.
        target: Unlabelled crops, or None.
        options: Sizes, order and faults of the batches.

    Raises:
        DataError: A split has no images, or lacks the class counts that its sampling needs.
        ValueError: The target's sampling needs class labels.
    """

    def __init__(
        self, source: CropSource | None, target: CropSource | None, options: BatchOptions
    ) -> None:
        for crops in (source, target):
            if crops is not None and not crops.samples:
                raise DataError(f"{crops.dataset.name}: split '{crops.split}' has no images")
        if target is not None and target.sampling != "uniform":
            raise ValueError(f"the target must be sampled uniformly, got {target.sampling}")
        self.source, self.target, self.options = source, target, options
        self._source = self._target = None
        if source is not None:
            self._source = SamplingOrder(source, seed=options.seed, domain=_SOURCE)
        if target is not None:
            self._target = SamplingOrder(target, seed=options.seed, domain=_TARGET)

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step` on this rank."""
        skipped: list[str] = []
        source_images, source_labels = _empty_source()
        if self._source is not None:
            source_crops = self._read_crops(
                self._source, self._draw_numbers(step, self.options.batch_source), skipped
            )
            source_images = _image_tensor([image for image, _ in source_crops])
            source_labels = _label_tensor([label for _, label in source_crops])
        target = pseudo = None
        if self._target is not None:
            target_crops = self._read_crops(
                self._target, self._draw_numbers(step, self.options.batch_target), skipped
            )
            target = _image_tensor([image for image, _ in target_crops])
            if self._target.crops.pseudo_labels is not None:
                pseudo = _label_tensor([label for _, label in target_crops])
        # The same seed on all ranks: each draws the random numbers for the images of all ranks.
        # The constant 0 stays so that existing seeds keep their meaning.
        entropy = np.random.SeedSequence([self.options.seed, step, 0])
        first_step, steps = self.options.first_step, self.options.steps
        return Batch(
            step=step,
            progress=(step - first_step) / (steps - first_step),
            seed=int(entropy.generate_state(1, np.uint32)[0]),
            source_images=source_images,
            source_labels=source_labels,
            target_images=target,
            pseudo_labels=pseudo,
            skipped=tuple(skipped),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor in a batch; it is the same in every step."""
        images, labels = _empty_source()
        shapes: dict[str, tuple[int, ...]] = {
            "source_images": images.shape,
            "source_labels": labels.shape,
        }
        if self.source is not None:
            size, crop = self.options.batch_source, self.source.crop
            shapes = {"source_images": (size, 3, *crop), "source_labels": (size, *crop)}
        if self.target is not None:
            size, crop = self.options.batch_target, self.target.crop
            shapes["target_images"] = (size, 3, *crop)
            if self.target.pseudo_labels is not None:
                shapes["pseudo_labels"] = (size, *crop)
        return shapes

    def _draw_numbers(self, step: int, size: int) -> range:
        """Return the draw numbers of a domain in `step` on this rank."""
        first = (step * self.options.world_size + self.options.rank) * size
        return range(first, first + size)

    def _read_crops(self, draws: SamplingOrder, numbers: range, skipped: list[str]) -> list[_Crop]:
        return [self._read_crop(draws, number, skipped) for number in numbers]

    def _read_crop(self, draws: SamplingOrder, number: int, skipped: list[str]) -> _Crop:
        """Return the crop of one draw; with `skip`, replace an image that cannot be used.

        A crop depends only on the number of the draw. It is the same in any worker and after any
        resume, as long as the same files are bad.
        """
        crops, requested = draws.crops, draws.draw(number)
        draw = requested
        for attempt in range(1 + _MAX_REPLACEMENTS):
            try:
                image, labels = crops.read(draw.sample)
            except DataError as error:
                if self.options.on_bad_sample == "fail":
                    raise
                skipped.append(str(error))
                draw = draws.replacement(requested, attempt)
                continue
            rng = np.random.default_rng(requested.key)
            return crops.crop_image(draw.sample, image, labels, rng, draw.train_id)
        raise DataError(
            f"{skipped[-1]}; the {_MAX_REPLACEMENTS} images tried before it could not be used "
            "either: the dataset is damaged or missing, not single files; check it with "
            "`udaseg doctor`"
        )

    @property
    def classes_never_drawn(self) -> tuple[int, ...]:
        """Train ids of source classes that occur, but that no image can be drawn for."""
        return () if self._source is None else self._source.classes_never_drawn

    def digests(self) -> dict[str, str]:
        """Return a digest of each domain's file names, which determine the order of batches."""
        digests = {}
        for domain, crops in (("source", self.source), ("target", self.target)):
            if crops is not None:
                names = "\n".join(sample.image for sample in crops.samples)
                digests[domain] = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        return digests

    def image_paths(self, step: int) -> list[str]:
        """Return the image files of the batch of `step` on this rank, for error messages."""
        return [
            str(draws.crops.dataset.image_path(draws.draw(number).sample))
            for draws, size in (
                (self._source, self.options.batch_source),
                (self._target, self.options.batch_target),
            )
            if draws is not None
            for number in self._draw_numbers(step, size)
        ]


def _image_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Stack (H, W, 3) crops to (B, 3, H, W) in one copy, also from mirrored views."""
    height, width = images[0].shape[:2]
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for slot, image in zip(stacked, images, strict=True):
        slot[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)


def _label_tensor(labels: Sequence[NDArray[np.uint8] | None]) -> Tensor:
    return torch.from_numpy(np.stack([label for label in labels if label is not None]))


def _empty_source() -> tuple[Tensor, Tensor]:
    images = torch.empty((0, 3, 1, 1), dtype=torch.uint8)
    return images, torch.empty((0, 1, 1), dtype=torch.uint8)
