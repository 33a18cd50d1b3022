"""What `resize` can be: one size for all images, or one length for the shorter side of each."""

import re
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from annotated_types import Ge

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

_LONGEST_SHAPE = 16


@dataclass(frozen=True)
class ShortSide:
    """One length for the shorter side of all images, which keep their shape."""

    short_side: Annotated[int, Ge(1)]
    """Pixels of the shorter side of each image; 1024 in VFM-UDA, 1440 for its GTA5. An image that
    is more than 16 times as long as wide gets the pixels of one that is 16 times as long.
    """


Resize: TypeAlias = Size | ShortSide
"""What `resize` of a recipe can be, besides null."""


def resized(stored: Size, resize: Resize | None) -> Size:
    """Return the (height, width) of an image of size `stored` after `resize`.

    Example:
        resized((1080, 1920), ShortSide(540))  # (540, 960)
    """
    if not isinstance(resize, ShortSide):
        return resize or stored
    short, long = sorted(stored)
    factor = resize.short_side / short
    if long > _LONGEST_SHAPE * short:
        # a strip of 10,000 x 1 pixels would not fit in memory
        factor *= (_LONGEST_SHAPE * short / long) ** 0.5
    return max(1, round(stored[0] * factor)), max(1, round(stored[1] * factor))


def plain_size(resize: Resize | None) -> Size | dict[str, int] | None:
    """Return `resize` for JSON, as a recipe has it."""
    return vars(resize) if isinstance(resize, ShortSide) else resize


def recipe_size(resize: Resize) -> str:
    """Return `resize` as it is written in a recipe."""
    if isinstance(resize, ShortSide):
        return f"{{short_side: {resize.short_side}}}"
    return f"[{resize[0]}, {resize[1]}]"


def size_advice(text: str, *, can_be_short: bool) -> str | None:
    """Return a size that is written as WIDTHxHEIGHT, or as one number, as a recipe has it."""
    if pair := re.fullmatch("([1-9][0-9]*) ?[xX×] ?([1-9][0-9]*)", text):
        return f"[{pair[2]}, {pair[1]}], which is [HEIGHT, WIDTH], for {pair[1]}x{pair[2]} px"
    if can_be_short and re.fullmatch("[1-9][0-9]*", text):
        return f"{{short_side: {text}}}"
    return None


def distorts(stored: Size, resize: Resize | None) -> bool:
    """Return whether `resize` changes the aspect ratio of an image by more than 10 %."""
    if resize is None or isinstance(resize, ShortSide):
        return False
    return not 0.9 < stored[1] / stored[0] / (resize[1] / resize[0]) < 1.1
