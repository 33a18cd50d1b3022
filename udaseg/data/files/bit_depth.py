"""How many bits the values of 16-bit images use: cameras of 12 bits write 16-bit files.

This is decided for a whole data set, never for one image: a dark image has small values too.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.bands import Bands
from udaseg.data.files.images import image_header, read_values
from udaseg.data.files.parallel import map_in_threads
from udaseg.errors import DataError

FULL_BITS = 16
_CAMERA_BITS = (8, 10, 12)

NO_DEEP_IMAGES = 0
"""What takes the place of bits in a data set without 16-bit images."""


def bits_of_values(peaks: Iterable[int]) -> int:
    """Return the bits that hold the largest values of some 16-bit images: 8, 10, 12 or 16.

    Without any image it is `NO_DEEP_IMAGES`.
    """
    largest = max(peaks, default=None)
    if largest is None:
        return NO_DEEP_IMAGES
    return next((bits for bits in _CAMERA_BITS if largest < 2**bits), FULL_BITS)


def bits_of_files(
    paths: Sequence[Path],
    on_progress: Callable[[int, int], None] | None = None,
    bands: Bands | None = None,
) -> int:
    """Return the bits that the 16-bit images among `paths` use; see `bits_of_values`.

    All of them are decoded, up to the first that needs all bits. Files that cannot be read are left
    out: whoever reads them next says so.
    """
    deep = [path for path in paths if is_deep(path)]
    bits = NO_DEEP_IMAGES
    largest = partial(_largest_value, bands=bands)
    with closing(map_in_threads(largest, deep, -1, on_progress)) as found:
        for _, peak in found:
            bits = max(bits, bits_of_values(() if peak is None else (peak,)))
            if bits == FULL_BITS:
                break
    return bits


def largest_value(values: NDArray[np.uint8] | NDArray[np.uint16]) -> int | None:
    """Return the largest value of a 16-bit image, or None for one of 8 bits."""
    return None if values.dtype == np.uint8 else int(values.max())


def _largest_value(path: Path, bands: Bands | None) -> int | None:
    try:
        return largest_value(read_values(path, bands=bands))
    except DataError:
        return None


def is_deep(path: Path) -> bool:
    """Return whether a file is a readable 16-bit image, by its header."""
    try:
        return image_header(path).bits == FULL_BITS
    except DataError:
        return False
