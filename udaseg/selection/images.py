"""The images that networks are compared and calibrated on, and how a network reads them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.datasets.index import PreparedDataset, Sample, evenly_spaced_indices
from udaseg.data.loading.transforms import resize_image
from udaseg.errors import DataError, UsageError
from udaseg.inference.run_data import open_source
from udaseg.inference.sizes import network_input_size, untiled_input_size
from udaseg.inference.trained_model import Model
from udaseg.models.pixels import image_batch
from udaseg.recipe.schema import Recipe


@dataclass(frozen=True)
class ImageSet:
    """A data set in which `split` is reduced to a few images."""

    dataset: PreparedDataset
    split: str

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images."""
        return self.dataset.split(self.split)

    @property
    def labelled(self) -> bool:
        """Whether all images have labels."""
        return self.dataset.classes is not None and all(sample.label for sample in self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return where the images are from, and how many they are."""
        return {"data": self.dataset.name, "split": self.split, "images": len(self.samples)}


def choose_images(dataset: PreparedDataset, split: str, limit: int) -> ImageSet:
    """Return at most `limit` evenly spaced images of a split."""
    if limit < 1:
        raise UsageError(f"images must be at least 1, got {limit}")
    samples = dataset.split(split)
    if not samples:
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    chosen = tuple(samples[index] for index in evenly_spaced_indices(len(samples), limit))
    return ImageSet(replace(dataset, splits={**dataset.splits, split: chosen}), split)


def source_images(recipe: Recipe, limit: int, root: Path) -> ImageSet:
    """Return images of the recipe's source, from its `val` split if there is one."""
    return choose_source_images(open_source(recipe, root=root), recipe, limit)


def choose_source_images(dataset: PreparedDataset, recipe: Recipe, limit: int) -> ImageSet:
    """Return images of the opened source, as `source_images`."""
    split = "val" if dataset.splits.get("val") else recipe.source.split
    return choose_images(dataset, split, limit)


def network_input(model: Model, image: NDArray[np.uint8]) -> Tensor:
    """Return an image (1, 3, h, w) in [0, 1] at the size at which `predict` uses it."""
    size = untiled_input_size((image.shape[0], image.shape[1]), network_input_size(model.recipe))
    resized = resize_image(image, size, model.recipe.target.resampling)
    return image_batch([resized], model.device)
