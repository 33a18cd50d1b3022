"""Write the masks of GeoTIFFs with the place on earth of their images."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from udaseg.data.files.images import read_image
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.files import open_atomic
from udaseg.inference.options import MAX_PIXELS
from udaseg.prediction.plan import Job
from udaseg.text import count_text

log = logging.getLogger(__name__)
_SUFFIXES = (".tif", ".tiff")


def write_geotiffs(jobs: Sequence[Job], folder: Path, ids: Path, classes: ClassSpace) -> None:
    """Write the ids of each image that is a GeoTIFF as one, with the class colours.

    They have the coordinate system, the transform and the ground control points of the image, and
    `IGNORE` as the value without data. Other images are counted in a log message.

    Args:
        jobs: Jobs of images; those without a mask of ids are left out.
        folder: Folder of the GeoTIFFs.
        ids: Folder of the masks of ids.
        classes: Classes of the ids.
    """
    from rasterio.io import MemoryFile

    others = 0
    for job in jobs:
        mask = job.masks["ids"]
        place = _read_place(job.image) if mask.is_file() else {}
        if not place:
            others += mask.is_file()
            continue
        labels = read_image(mask, max_pixels=MAX_PIXELS)[..., 0]
        height, width = labels.shape
        size = {"height": height, "width": width, "count": 1, "dtype": "uint8"}
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", compress="deflate", nodata=IGNORE, **size, **place
            ) as file:
                file.write(labels, 1)
                file.write_colormap(1, dict(enumerate(classes.colors)))
            path = folder / mask.relative_to(ids).with_suffix(".tif")
            with open_atomic(path) as output:
                output.write(memory.getbuffer())
    if others:
        have = "has" if others == 1 else "have"
        log.warning("%s %s no place on earth: no GeoTIFF", count_text(others, "image"), have)


def _read_place(image: Path) -> dict[str, object]:
    """Return what places a GeoTIFF on earth, as arguments of rasterio; empty if nothing does."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    if image.suffix.lower() not in _SUFFIXES:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(image)
    with file:
        points, system = file.gcps
        if points:
            return {"gcps": points, "crs": system}
        if file.crs is None and file.transform.is_identity:
            return {}
        return {"crs": file.crs, "transform": file.transform}
