"""Orientation of the label of a turned image: as stored, or upright as viewers show it."""

from typing import Any, Literal

from numpy.typing import NDArray

from udaseg.data.files.orientation import Size, to_upright

LabelOrientation = Literal["stored", "upright"]


def upright_label(
    labels: NDArray[Any], image: Size, orientation: int, declared: LabelOrientation | None
) -> NDArray[Any] | None:
    """Return the label of an image upright; None if its orientation is unknown.

    A label that is wide where the upright image is tall, or the other way round, is stored like
    the image. If both sides are equal, or the image is upside down or mirrored, only the
    declaration of the data set decides.

    Args:
        labels: (H, W), without an orientation of its own.
        image: (height, width) of the upright image.
        orientation: EXIF orientation of the image, 1 to 8.
        declared: What the declaration says.
    """
    height, width = labels.shape
    if orientation == 1:
        return labels
    if orientation >= 5 and height != width and image[0] != image[1]:
        is_upright = (height > width) == (image[0] > image[1])
        return labels if is_upright else to_upright(labels, orientation)
    if declared is None:
        return None
    return labels if declared == "upright" else to_upright(labels, orientation)
