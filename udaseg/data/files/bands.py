"""Three bands of a TIFF that has more of them, read by rasterio."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from udaseg.errors import DataError, EnvironmentFault

Bands: TypeAlias = tuple[int, int, int]
"""The bands that are read as red, green and blue; the first band is 0."""


def require_rasterio(purpose: str) -> None:
    """Raise an `EnvironmentFault` without the package that reads and writes GeoTIFFs."""
    if find_spec("rasterio") is None:
        raise EnvironmentFault(f"{purpose} needs rasterio: pip install 'udaseg[geo]'")


def read_bands(path: Path, data: bytes, bands: Bands) -> NDArray[Any]:
    """Return three bands of a TIFF as stored, (H, W, 3), in their type.

    Args:
        path: Name for error messages.
        data: Content of the file, whose header says that it has these bands.
        bands: Which of them.
    """
    require_rasterio("`bands`")
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile

    # not `catch_warnings`, which is for one thread
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    try:
        with MemoryFile(data) as memory, memory.open() as file:
            values = file.read([band + 1 for band in bands])
    except RasterioError as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    return np.ascontiguousarray(values.transpose(1, 2, 0))
