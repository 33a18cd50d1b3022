"""The images that candidates are compared on, as a network reads them."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.datasets.index import PreparedDataset, Sample, evenly_spaced_indices
from udaseg.data.loading.transforms import resize_image
from udaseg.errors import DataError, UsageError
from udaseg.inference.sizes import network_input_size, untiled_input_size
from udaseg.inference.trained_model import Model
from udaseg.models.pixels import image_batch


def evenly_spaced_samples(dataset: PreparedDataset, split: str, limit: int) -> list[Sample]:
    """Return at most `limit` evenly spaced samples of a split.

    Raises:
        UsageError: The limit is below 1.
        DataError: The split has no images.
    """
    if limit < 1:
        raise UsageError(f"images must be at least 1, got {limit}")
    samples = dataset.split(split)
    if not samples:
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    return [samples[index] for index in evenly_spaced_indices(len(samples), limit)]


def network_input(model: Model, image: NDArray[np.uint8]) -> Tensor:
    """Return an image (1, 3, h, w) in [0, 1] at the size at which `predict` uses it."""
    size = untiled_input_size((image.shape[0], image.shape[1]), network_input_size(model.recipe))
    return image_batch([resize_image(image, size)], model.device)
