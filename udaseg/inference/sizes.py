"""Choose the network's input size for images of other sizes than in training."""

from collections.abc import Sequence

from udaseg.recipe.schema import Recipe
from udaseg.sizes import Resize, ShortSide, Size, resized

MAX_WHOLE_PIXELS = 2048 * 2048
"""Maximum pixels of one network input."""

_ASPECT_TOLERANCE = 0.02


def input_size(stored: Size, trained: Resize | None) -> Size:
    """Return the network's input size (height, width) for an image.

    An image with the training aspect ratio (width / height within 2 %) gets exactly the training
    size. Any other keeps its aspect ratio and gets about the same number of pixels. Objects then
    appear about as large as in training, nothing is distorted, and time and memory are equal for
    every image, even a strip of 10,000 x 1 pixels. `trained` is None if images kept their size; one
    shorter side for all, as in training, distorts nothing either.
    """
    if trained is None or isinstance(trained, ShortSide):
        return resized(stored, trained)
    ratio = (stored[1] / stored[0]) / (trained[1] / trained[0])
    if abs(ratio - 1) <= _ASPECT_TOLERANCE:
        return trained
    return _scale_to_pixels(stored, trained[0] * trained[1])


def untiled_input_size(stored: Size, trained: Resize | None) -> Size:
    """Return `input_size`, reduced to `MAX_WHOLE_PIXELS` for callers that do not use tiles."""
    size = input_size(stored, trained)
    return _scale_to_pixels(size, MAX_WHOLE_PIXELS) if needs_tiles(size) else size


def needs_tiles(size: Sequence[int]) -> bool:
    """Return whether an input of (height, width, …) is too large to predict in one piece."""
    return size[0] * size[1] > MAX_WHOLE_PIXELS


def size_within(size: Size, side: int) -> Size:
    """Return a size reduced to sides of at most `side`, with the same aspect ratio."""
    factor = min(1, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def network_input_size(recipe: Recipe) -> Resize | None:
    """Return the recipe's input size for validation; without one, that of target images."""
    if recipe.validation.data is not None:
        return recipe.validation.resize
    return recipe.validation.resize or recipe.target.resize


def _scale_to_pixels(size: Size, pixels: int) -> Size:
    factor = (pixels / (size[0] * size[1])) ** 0.5
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
