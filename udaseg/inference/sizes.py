"""Choose the network's input size for images of other sizes than in training."""

from udaseg.recipe.schema import Recipe

Size = tuple[int, int]

MAX_WHOLE_PIXELS = 2048 * 2048
"""Maximum pixels of one network input."""

_ASPECT_TOLERANCE = 0.02


def input_size(stored: Size, trained: Size | None) -> Size:
    """Return the network's input size (height, width) for an image.

    An image with the training aspect ratio (width / height within 2 %) gets exactly the training
    size. Any other keeps its aspect ratio and gets about the same number of pixels. Objects then
    appear about as large as in training, nothing is distorted, and time and memory are equal for
    every image, even a strip of 10,000 x 1 pixels.

    Args:
        stored: (height, width) of the image.
        trained: (height, width) of training and validation; None if images were not resized in
            training, so this image is not resized either.
    """
    if trained is None:
        return stored
    ratio = (stored[1] / stored[0]) / (trained[1] / trained[0])
    if abs(ratio - 1) <= _ASPECT_TOLERANCE:
        return trained
    return _scale_to_pixels(stored, trained[0] * trained[1])


def untiled_input_size(stored: Size, trained: Size | None) -> Size:
    """Return the input size for predicting an image in one piece, for callers without tiles.

    The result of `input_size`, reduced to `MAX_WHOLE_PIXELS` with the same aspect ratio.

    Args:
        stored: (height, width) of the image.
        trained: (height, width) of training, or None.
    """
    size = input_size(stored, trained)
    return (
        size if size[0] * size[1] <= MAX_WHOLE_PIXELS else _scale_to_pixels(size, MAX_WHOLE_PIXELS)
    )


def _scale_to_pixels(size: Size, pixels: int) -> Size:
    """Scale a size to about `pixels` pixels, with the same aspect ratio."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def network_input_size(recipe: Recipe) -> tuple[int, int] | None:
    """Return the recipe's input size for validation; without one, that of target images."""
    if recipe.validation.data is not None:
        return recipe.validation.resize
    return recipe.validation.resize or recipe.target.resize
