"""At which size the network looks at an image that is not of the size it was trained at."""

Size = tuple[int, int]

WHOLE_PX = 2048 * 2048
"""Most pixels that a network is shown at once."""

_SAME_SHAPE = 0.02


def network_size(stored: Size, trained: Size | None) -> Size:
    """Return the size (height, width) at which the network looks at an image.

    An image of the shape trained at (width / height within 2 %) gets exactly that size. Any other
    keeps its own shape and gets as many pixels as were trained at: things then appear about as
    large as in training, nothing is squashed, and time and memory are the same for every image,
    a strip of 10,000 x 1 pixels included.

    Args:
        stored: (height, width) of the image.
        trained: (height, width) that the network was trained and is validated at; None means
            that images were not resized, so none is here.
    """
    if trained is None:
        return stored
    ratio = (stored[1] / stored[0]) / (trained[1] / trained[0])
    if abs(ratio - 1) <= _SAME_SHAPE:
        return trained
    return _of_pixels(stored, trained[0] * trained[1])


def whole_size(stored: Size, trained: Size | None) -> Size:
    """Return the size at which an image is looked at whole, where tiles will not do.

    That of `network_size`, or of more than `WHOLE_PX` pixels one of the same shape with as many.

    Args:
        stored: (height, width) of the image.
        trained: (height, width) that the network was trained at, or None.
    """
    seen = network_size(stored, trained)
    return seen if seen[0] * seen[1] <= WHOLE_PX else _of_pixels(seen, WHOLE_PX)


def _of_pixels(size: Size, pixels: int) -> Size:
    """Return the size of the same shape that has about `pixels`."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
