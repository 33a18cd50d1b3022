"""Training batches as a function of the step, so no sampler or loader state has to be saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from udaseg.data.files.images import Pixels
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.sampling import MixedOrder, SamplingOrder, sampling_order
from udaseg.errors import DataChanged, DataError
from udaseg.files import sha256

_MAX_REPLACEMENTS = 20
"""Replacement images to try for one that cannot be used."""

CONTENT = "_content"
"""End of the names of digests of content, rather than of file names."""

_LABELS = {"source": "source_labels", "target": "pseudo_labels"}
"""The labels of each domain in a batch."""

_NO_SOURCE = {"source_images": (0, 3, 1, 1), "source_labels": (0, 1, 1)}
"""Shapes of the source in a batch of the target alone."""


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
    target_images: Tensor | None = None
    pseudo_labels: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; transfers uint8, conversion to float happens there."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved: dict[str, Any] = {
            name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class BatchOptions:
    """Sizes on each rank, order and faults of the batches of a stage.

    Attributes:
        steps: Step of the run at which this stage ends.
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


class TrainingBatches:
    """Batches of a run, where batch i depends only on (seed, i, rank).

    The batches of all ranks in a step, concatenated, equal the batch of a single process with the
    same total size. Labelled source and unlabelled target iterate over their files independently
    (see `SamplingOrder`), so neither ends when the other does.

    Attributes:
        classes_never_drawn: Source classes that occur, but that no image can be drawn for.
    """

    def __init__(
        self, source: CropSource | None, target: CropSource | None, options: BatchOptions
    ) -> None:
        for crops in (source, target):
            if crops is not None and not crops.samples:
                raise DataError(f"{crops.dataset.name}: split '{crops.split}' has no images")
        if target is not None and target.labelled:
            raise ValueError("the labels of a target must not be read")
        if target is not None and target.sampling != "uniform":
            raise ValueError(f"the target must be sampled uniformly, got {target.sampling}")
        self.source, self.target, self.options = source, target, options
        # for each domain with images: their order and the size of its part of a batch
        self._domains: dict[str, tuple[SamplingOrder | MixedOrder, int]] = {}
        self.classes_never_drawn: tuple[int, ...] = ()
        if source is not None:
            source_order = sampling_order(source, seed=options.seed, domain=0)
            self._domains["source"] = (source_order, options.batch_source)
            self.classes_never_drawn = source_order.classes_never_drawn
        if target is not None:
            order = SamplingOrder(target, seed=options.seed, domain=1)
            self._domains["target"] = (order, options.batch_target)

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step` on this rank."""
        options, skipped = self.options, list[str]()
        tensors = {name: torch.empty(size, dtype=torch.uint8) for name, size in _NO_SOURCE.items()}
        for domain, (order, size) in self._domains.items():
            numbers = self._draw_numbers(step, size)
            images, labels = zip(
                *(self._read_crop(order, n, skipped) for n in numbers), strict=True
            )
            tensors[f"{domain}_images"] = _image_tensor(images)
            if order.crops.labelled or order.crops.pseudo_labels is not None:
                tensors[_LABELS[domain]] = torch.from_numpy(np.stack(labels))
        # The same seed on all ranks: each draws the random numbers for the images of all ranks.
        # The constant 0 stays so that existing seeds keep their meaning.
        entropy = np.random.SeedSequence([options.seed, step, 0])
        return Batch(
            step=step,
            progress=(step - options.first_step) / (options.steps - options.first_step),
            seed=int(entropy.generate_state(1, np.uint32)[0]),
            skipped=tuple(skipped),
            **tensors,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor in a batch; it is the same in every step."""
        shapes: dict[str, tuple[int, ...]] = {**_NO_SOURCE}
        for domain, (order, size) in self._domains.items():
            shapes[f"{domain}_images"] = (size, 3, *order.crops.crop)
            if order.crops.labelled or order.crops.pseudo_labels is not None:
                shapes[_LABELS[domain]] = (size, *order.crops.crop)
        return shapes

    def _draw_numbers(self, step: int, size: int) -> range:
        """Return the draw numbers of a domain in `step` on this rank."""
        first = (step * self.options.world_size + self.options.rank) * size
        return range(first, first + size)

    def _read_crop(
        self, order: SamplingOrder | MixedOrder, number: int, skipped: list[str]
    ) -> tuple[Pixels, Pixels | None]:
        """Return the crop of one draw; with `skip`, replace an image that cannot be used.

        A crop depends only on the number of the draw. It is the same in any worker and after any
        resume, as long as the same files are bad.
        """
        draw = order.draw(number)
        for attempt in range(1 + _MAX_REPLACEMENTS):
            try:
                image, labels = order.crops.read(draw.sample)
            except DataChanged:
                raise
            except DataError as error:
                if self.options.on_bad_sample == "fail":
                    raise
                skipped.append(str(error))
                draw = order.replacement(draw, attempt)
            else:
                rng = np.random.default_rng(draw.key)
                return order.crops.crop_image(draw.sample, image, labels, rng, draw.train_id)
        raise DataError(
            f"{skipped[-1]}; the {_MAX_REPLACEMENTS} images tried before it could not be used "
            "either: the dataset is damaged or missing, not single files; check it with "
            "`udaseg doctor`"
        )

    def digests(self) -> dict[str, str]:
        """Return digests of the file names of each domain, and of their content if it is held.

        The names determine the order of batches.
        """
        digests = {}
        for domain, (order, _) in self._domains.items():
            names = "\n".join(sample.image for sample in order.crops.samples)
            digests[domain] = sha256(names.encode(errors="surrogateescape"))
            if (content := order.crops.content()) is not None:
                digests[domain + CONTENT] = content
        return digests

    def image_paths(self, step: int) -> list[str]:
        """Return the image files of the batch of `step` on this rank, for error messages."""
        return [
            str(order.crops.dataset.image_path(order.draw(number).sample))
            for order, size in self._domains.values()
            for number in self._draw_numbers(step, size)
        ]


def _image_tensor(images: Sequence[Pixels]) -> Tensor:
    """Stack (H, W, 3) crops to (B, 3, H, W) in one copy, also from mirrored views."""
    height, width = images[0].shape[:2]
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for slot, image in zip(stacked, images, strict=True):
        slot[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)
