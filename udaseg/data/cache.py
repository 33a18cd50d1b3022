"""Images at training resolution beside the index: where they lie, whether they still hold, reading.

A cache is a folder with one file for each image and label and a manifest, written last, with the
size and time of change of every file that it was made from.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from udaseg.data.images import read_bytes, read_image, read_train_ids
from udaseg.data.index import PreparedDataset, Sample
from udaseg.data.packed import unpack, zstd
from udaseg.errors import DataError, EnvironmentFault

log = logging.getLogger(__name__)

CacheFormat = Literal["png", "raw"]
MANIFEST = "cache.json"
CACHE_VERSION = 1

_SHOWN = 3


@dataclass(frozen=True)
class Cache:
    """Images and labels of one size.

    Attributes:
        folder: Where they lie.
        size: (height, width).
        form: `png`, or `raw` (packed bytes).
        left_out: Images that are not in it, to be read from their own files.
    """

    folder: Path
    size: tuple[int, int]
    form: CacheFormat
    left_out: frozenset[str] = frozenset()

    def holds(self, sample: Sample) -> bool:
        """Return whether `sample` is in it."""
        return sample.image not in self.left_out

    def image_path(self, sample: Sample) -> Path:
        """Return where the image of `sample` lies."""
        return self.folder / "images" / f"{sample.image}.{self.form}"

    def label_path(self, sample: Sample) -> Path:
        """Return where the label of `sample` lies."""
        return self.folder / "labels" / f"{sample.label}.{self.form}"

    def image(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the image (H, W, 3) of `sample`.

        Raises:
            DataError: The cached file is damaged.
        """
        return self._read(self.image_path(sample), color=True)

    def labels(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the label (H, W) of `sample`, train ids.

        Raises:
            DataError: The cached file is damaged.
        """
        return self._read(self.label_path(sample), color=False)

    def _read(self, path: Path, *, color: bool) -> NDArray[np.uint8]:
        try:
            if self.form == "raw":
                pixels = unpack(path, read_bytes(path))
            else:
                pixels = read_image(path) if color else read_train_ids(path)
            if pixels.shape != (*self.size, 3)[: 3 if color else 2]:
                raise DataError(f"{path}: damaged: of shape {pixels.shape}")
        except DataError as error:
            raise DataError(
                f"{error}; delete it and run `udaseg prepare --cache` again, "
                f"or delete {self.folder} to read the files themselves"
            ) from error
        return pixels


def cache_folder(dataset: PreparedDataset, size: tuple[int, int]) -> Path:
    """Return where the cache of `size` (height, width) lies, beside the index."""
    return dataset.folder / f"cache-{size[1]}x{size[0]}"


def stamp(path: Path) -> str:
    """Return what tells that a file is another one now: its size and time of change."""
    try:
        found = path.stat()
    except OSError:
        return "unreadable"
    return f"{found.st_size} {found.st_mtime_ns}"


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """Return the manifest of a cache; None when there is none that this version reads."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = document["version"] == CACHE_VERSION and document["form"] in ("png", "raw")
        known = known and all(len(row) == 4 for row in document["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(document) if known else None


def left_out_of(rows: Mapping[str, Any]) -> frozenset[str]:
    """Return the images of a manifest that have no cached file."""
    return frozenset(name for name, row in rows.items() if row[1] is None)


def open_cache(
    dataset: PreparedDataset, split: str, size: tuple[int, int] | None, *, labelled: bool
) -> Cache | None:
    """Return the cache of a split at `size`; None, with a warning, where it no longer holds.

    Args:
        dataset: A prepared set.
        split: All of its images must be there.
        size: (height, width); None has no cache.
        labelled: Whether labels are asked for; otherwise not even their names are looked at.
    """
    if size is None or dataset.folder.resolve() == dataset.image_root.resolve():
        return None  # a plain folder is the user's own
    folder = cache_folder(dataset, size)
    if not folder.is_dir():
        return None
    again = f"run `udaseg prepare {dataset.name} --cache {size[1]}x{size[0]}` again"
    manifest = read_manifest(folder)
    if manifest is None:
        log.warning("%s: is not complete, so it is not used; %s", folder, again)
        return None
    rows = manifest["files"]
    left_out = left_out_of(rows)
    cache = Cache(folder, size, manifest["form"], left_out)
    stale = [
        sample.image
        for sample in dataset.split(split)
        if sample.image not in left_out
        and not current(dataset, cache, sample, rows.get(sample.image), labelled=labelled)
    ]
    if stale:
        log.warning(
            "%s: is not used, as %d images are new or have changed since (%s%s); %s",
            *(folder, len(stale), ", ".join(stale[:_SHOWN])),
            *(", ..." if len(stale) > _SHOWN else "", again),
        )
        return None
    if cache.form == "raw":
        try:
            zstd()
        except EnvironmentFault as error:
            log.warning("%s: is not used: %s", folder, error)
            return None
    return cache


def current(
    dataset: PreparedDataset, cache: Cache, sample: Sample, row: Any, *, labelled: bool
) -> bool:
    """Return whether the cached files of `sample` are whole and of today's files.

    Args:
        dataset: The set.
        cache: Where its files would be.
        sample: One of its images.
        row: What the manifest or the journal says of it: stamp and bytes of image and label.
        labelled: Whether the label counts.
    """
    if not isinstance(row, list) or len(row) != 4:
        return False
    image, image_bytes, label, label_bytes = row
    if image != stamp(dataset.image_path(sample)):
        return False
    if image_bytes is None:
        return True  # left out, and still the same file
    if image_bytes != _bytes(cache.image_path(sample)):
        return False
    if not labelled:
        return True
    same = label == stamp(dataset.label_path(sample))
    return same and bool(label_bytes == _bytes(cache.label_path(sample)))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
