"""Choose the network's input size for images of other sizes than in training."""

Size = tuple[int, int]

WHOLE_PX = 2048 * 2048
"""Maximum pixels of one network input."""

_SAME_SHAPE = 0.02


def network_size(stored: Size, trained: Size | None) -> Size:
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
    if abs(ratio - 1) <= _SAME_SHAPE:
        return trained
    return _of_pixels(stored, trained[0] * trained[1])


def whole_size(stored: Size, trained: Size | None) -> Size:
    """Return the input size for predicting an image in one piece, for callers without tiles.

    The result of `network_size`, reduced to `WHOLE_PX` pixels with the same aspect ratio.

    Args:
        stored: (height, width) of the image.
        trained: (height, width) of training, or None.
    """
    size = network_size(stored, trained)
    return size if size[0] * size[1] <= WHOLE_PX else _of_pixels(size, WHOLE_PX)


def _of_pixels(size: Size, pixels: int) -> Size:
    """Scale a size to about `pixels` pixels, with the same aspect ratio."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
