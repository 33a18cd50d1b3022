"""Label files: train ids of prepared labels, and raw ids in any label format."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from udaseg.data.files.held import HeldFiles, read_held
from udaseg.data.files.images import decode, read_bytes
from udaseg.data.files.orientation import orientation_of, to_upright, without_orientation
from udaseg.data.labels.formats import label_reader
from udaseg.errors import DataChanged, DataError


def read_train_ids(path: Path, held: HeldFiles | None = None) -> NDArray[np.uint8]:
    """Return a prepared label as (H, W) uint8 train ids.

    Args:
        path: The file.
        held: See `read_held`.

    Raises:
        DataChanged: The file is not as it is held.
        DataError: The file is unreadable, or not an 8-bit single-channel PNG.
    """
    try:
        labels = decode(path, read_held(path, held or {}), cv2.IMREAD_UNCHANGED)
    except DataChanged:
        raise
    except DataError as error:
        raise DataError(f"{error}; run `udaseg prepare` again") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f"{path}: is not a prepared label (8-bit, one channel)")
    return np.asarray(labels, np.uint8)


def read_label_ids(path: Path, label_format: str, *, data: bytes | None = None) -> NDArray[Any]:
    """Return the raw ids of a label file, (H, W) of an integer type.

    A file with an EXIF orientation of its own is turned by it, as viewers show it.

    Args:
        path: The label file.
        label_format: How the ids are stored: a name in `formats.py`, or of an installed package.
        data: Content of the file, if already read.

    Raises:
        DataError: The file is unreadable, damaged, or its format cannot store ids.
        EnvironmentFault: The package that reads the format is missing or does not work.
    """
    data = read_bytes(path) if data is None else data
    ids = label_reader(label_format)(path, without_orientation(data))
    return to_upright(ids, orientation_of(data))
