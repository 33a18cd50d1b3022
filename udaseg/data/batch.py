"""Training batches as a function of the step: no sampler or loader state exists to be saved."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from udaseg.data.crops import Crops
from udaseg.data.draws import Draws
from udaseg.errors import DataError

_SOURCE, _TARGET = 0, 1
_INSTEAD = 20
"""Images that are tried in the place of one that cannot be used."""

_Crop = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        step: Number of the step, from 0.
        progress: Share of this part of the run that is done, in [0, 1).
        seed: Seeds everything random in the step, the same on every rank.
        source_images: (B, 3, H, W) uint8 RGB; (0, 3, 1, 1) when only the target is trained on.
        source_labels: (B, H, W) uint8 train ids with `IGNORE`.
        target_images: (B, 3, H, W) uint8 RGB; None when only the source is trained on.
        pseudo_labels: (B, H, W) uint8 on the target images, made before this part of the run;
            never the target's truth. None when the part learns from none.
        skipped: Why images that were drawn are not in the batch; others took their places.
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

    The ranks' batches of a step, one after another, are the batch of one process that is as large.

    Source and target run through their files independently (see `Draws`), so neither ends when the
    other does.

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
        on_bad_sample: `fail` names an image that cannot be used; `skip` takes another one in its
            place, which the number of the draw decides, and says so in `Batch.skipped`.
        worker_timeout: Seconds after which a loader process that gives no batch counts as stuck; 0
            waits for ever.

    Raises:
        DataError: A split without images, or without the counts that its sampling needs.
        ValueError: A target whose sampling would need to know its classes.
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
        on_bad_sample: Literal["fail", "skip"] = "fail",
        worker_timeout: float = 300,
    ) -> None:
        for crops in (source, target):
            if crops is not None and not crops.samples:
                raise DataError(f"{crops.dataset.name}: split '{crops.split}' has no images")
        if target is not None and target.sampling != "uniform":
            raise ValueError(f"a target is sampled uniformly, got {target.sampling}")
        self.source, self.target = source, target
        self.batch_source, self.batch_target = batch_source, batch_target
        self.steps, self.seed, self.rank, self.world_size = steps, seed, rank, world_size
        self.begin, self.on_bad_sample = begin, on_bad_sample
        self.worker_timeout = worker_timeout
        self._source = None if source is None else Draws(source, seed=seed, domain=_SOURCE)
        self._target = None if target is None else Draws(target, seed=seed, domain=_TARGET)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step` on this rank."""
        skipped: list[str] = []
        source_images, source_labels = _nothing()
        if self._source is not None:
            pairs = self._crops(self._source, self._numbers(step, self.batch_source), skipped)
            source_images = _image_tensor([image for image, _ in pairs])
            source_labels = _label_tensor([label for _, label in pairs])
        target = pseudo = None
        if self._target is not None:
            drawn = self._crops(self._target, self._numbers(step, self.batch_target), skipped)
            target = _image_tensor([image for image, _ in drawn])
            if self._target.crops.pseudo_labels is not None:
                pseudo = _label_tensor([label for _, label in drawn])
        # one seed for all ranks, who draw for all images; the 0 was once the rank's number
        entropy = np.random.SeedSequence([self.seed, step, 0])
        return Batch(
            step=step,
            progress=(step - self.begin) / (self.steps - self.begin),
            seed=int(entropy.generate_state(1, np.uint32)[0]),
            source_images=source_images,
            source_labels=source_labels,
            target_images=target,
            pseudo_labels=pseudo,
            skipped=tuple(skipped),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that batches have; it is the same in every step."""
        images, labels = _nothing()
        found: dict[str, tuple[int, ...]] = {
            "source_images": images.shape,
            "source_labels": labels.shape,
        }
        if self.source is not None:
            size, crop = self.batch_source, self.source.crop
            found = {"source_images": (size, 3, *crop), "source_labels": (size, *crop)}
        if self.target is not None:
            size, crop = self.batch_target, self.target.crop
            found["target_images"] = (size, 3, *crop)
            if self.target.pseudo_labels is not None:
                found["pseudo_labels"] = (size, *crop)
        return found

    def _numbers(self, step: int, size: int) -> range:
        """Return the numbers of a domain's draws in `step` on this rank."""
        first = (step * self.world_size + self.rank) * size
        return range(first, first + size)

    def _crops(self, draws: Draws, numbers: range, skipped: list[str]) -> list[_Crop]:
        return [self._crop(draws, number, skipped) for number in numbers]

    def _crop(self, draws: Draws, number: int, skipped: list[str]) -> _Crop:
        """Return the crop of one draw; with `skip`, of the first image in its place that is good.

        A crop hangs on the number of the draw alone, so it is the same in any worker and after any
        resume as long as the same files are bad.
        """
        crops, first = draws.crops, draws.at(number)
        drawn = first
        for attempt in range(1 + _INSTEAD):
            try:
                image, labels = crops.read(drawn.sample)
            except DataError as error:
                if self.on_bad_sample == "fail":
                    raise
                skipped.append(str(error))
                drawn = draws.instead(first, attempt)
                continue
            rng = np.random.default_rng(first.key)
            return crops.cut(drawn.sample, image, labels, rng, drawn.train_id)
        raise DataError(
            f"{skipped[-1]}; so could {_INSTEAD} images before it not be used, which were drawn in "
            "each other's place: the data are damaged or gone, not single files"
        )

    @property
    def never_drawn(self) -> tuple[int, ...]:
        """Train ids of source classes that occur, but for which no image can be drawn."""
        return () if self._source is None else self._source.never_drawn

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
        return [
            str(draws.crops.dataset.image_path(draws.at(number).sample))
            for draws, size in (
                (self._source, self.batch_source),
                (self._target, self.batch_target),
            )
            if draws is not None
            for number in self._numbers(step, size)
        ]


def _image_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return crops (H, W, 3) as (B, 3, H, W), in one copy, mirrored or not."""
    height, width = images[0].shape[:2]
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)


def _label_tensor(labels: Sequence[NDArray[np.uint8] | None]) -> Tensor:
    return torch.from_numpy(np.stack([label for label in labels if label is not None]))


def _nothing() -> tuple[Tensor, Tensor]:
    images = torch.empty((0, 3, 1, 1), dtype=torch.uint8)
    return images, torch.empty((0, 1, 1), dtype=torch.uint8)
