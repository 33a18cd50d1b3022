"""Random crops of one domain: read, checked, resized, cut and mirrored from a generator's draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udaseg.data.images import read_image, read_train_ids
from udaseg.data.index import PreparedDataset, Sample
from udaseg.data.pseudo_labels import pseudo_label_path
from udaseg.data.transforms import cover, random_crop, random_mirror, resize_image, resize_labels
from udaseg.errors import DataError


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


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
