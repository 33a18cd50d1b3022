"""Locate, validate and read a cache of images at training resolution, stored next to the index.

A cache is a folder with one file per image and label, and a manifest, which is written last. For
each image, the manifest has a row with the stamp of the original and the bytes of the cached file,
of the image and then of its label.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.forms import has_form
from udaseg.data.files.images import Pixels, read_bytes, read_image
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading.packed import import_zstd, unpack
from udaseg.data.loading.transforms import Resampling
from udaseg.errors import DataError, EnvironmentFault
from udaseg.files import file_stamp, read_json
from udaseg.sizes import Resize, ShortSide, Size, resized

log = logging.getLogger(__name__)
CacheFormat = Literal["png", "raw"]
CACHE_MANIFEST_NAME = "cache.json"
CACHE_VERSION = 2
_MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Cache:
    """Cached images and labels of one size, or of one shorter side.

    Attributes:
        size: (height, width), or the shorter side.
        format: `png`, or `raw` (bytes compressed with zstd).
        stamps: Size and time of the cached files when the cache was opened, by image.
        resampling: How the images were resized; part of the folder's name.
    """

    folder: Path
    size: Resize
    format: CacheFormat
    stamps: Mapping[str, str] = field(default_factory=dict)
    resampling: Resampling = "area"

    def image_path(self, sample: Sample) -> Path:
        """Return the path of the cached image of `sample`."""
        return self.folder / "images" / f"{sample.image}.{self.format}"

    def label_path(self, sample: Sample) -> Path:
        """Return the path of the cached label of `sample`."""
        return self.folder / "labels" / f"{sample.label}.{self.format}"

    def load(self, sample: Sample, *, labelled: bool) -> tuple[Pixels, Pixels | None] | None:
        """Return the cached image and, if `labelled`, its label; None to read the original files.

        A cache that was written again after it was opened may have other pixels.
        """
        try:
            loaded = self.load_image(sample), self.load_labels(sample) if labelled else None
        except DataError:
            if self._has_changed(sample, labelled=labelled):
                return None
            raise
        # after reading, so that no change during the read is missed
        return None if self._has_changed(sample, labelled=labelled) else loaded

    def _has_changed(self, sample: Sample, *, labelled: bool) -> bool:
        known = self.stamps.get(sample.image)
        return known is not None and known != self.stamp(sample, labelled=labelled)

    def stamp(self, sample: Sample, *, labelled: bool) -> str:
        """Return size and time of the cached image and, if `labelled`, of its label."""
        paths = [self.image_path(sample), *([self.label_path(sample)] if labelled else [])]
        return " ".join(map(file_stamp, paths))

    def load_image(self, sample: Sample) -> Pixels:
        """Return the cached (H, W, 3) image of `sample`."""
        return self._read(self.image_path(sample), (*self._size_of(sample), 3))

    def load_labels(self, sample: Sample) -> Pixels:
        """Return the cached (H, W) train ids of `sample`."""
        return self._read(self.label_path(sample), self._size_of(sample))

    def _size_of(self, sample: Sample) -> Size:
        return resized((sample.height, sample.width), self.size)

    def _read(self, path: Path, shape: tuple[int, ...]) -> Pixels:
        try:
            if self.format == "raw":
                pixels = unpack(path, read_bytes(path))
            else:
                pixels = read_image(path) if len(shape) == 3 else read_train_ids(path)
            if pixels.shape != shape:
                raise DataError(f"{path}: damaged: unexpected shape {pixels.shape}")
        except DataError as error:
            raise DataError(
                f"{error}; delete it and run `udaseg prepare --cache` again, "
                f"or delete {self.folder} to read the original files"
            ) from error
        return pixels


def cache_folder(dataset: PreparedDataset, size: Resize, resampling: Resampling = "area") -> Path:
    """Return the folder of the cache of `size`, next to the index."""
    ending = "" if resampling == "area" else f"-{resampling}"
    return dataset.folder / f"cache-{cache_word(size)}{ending}"


def cache_word(size: Resize) -> str:
    """Return a size as `udaseg prepare --cache` takes it: WIDTHxHEIGHT, or the shorter side."""
    return str(size.short_side) if isinstance(size, ShortSide) else f"{size[1]}x{size[0]}"


CacheRow = tuple[str, int, str | None, int]
"""Stamp of an image and size of its cached file, then of its label; in JSON, a list."""


class _CacheManifest(TypedDict):
    version: int
    form: str
    files: dict[str, CacheRow]


def read_cache_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a cache; empty if it is missing, damaged or of another version."""
    manifest = read_json(folder / CACHE_MANIFEST_NAME)
    usable = manifest.get("version") == CACHE_VERSION and has_form(manifest, _CacheManifest)
    return manifest if usable and manifest["form"] in get_args(CacheFormat) else {}


def open_cache(
    dataset: PreparedDataset,
    split: str,
    size: Resize | None,
    *,
    labelled: bool,
    resampling: Resampling = "area",
) -> Cache | None:
    """Return the cache of a split at `size`; None if there is none, with a warning if it is stale.

    Args:
        dataset: A prepared dataset.
        split: All its images must be in the cache.
        size: That of the images; None disables the cache.
        labelled: Whether labels are needed; otherwise they are not checked.
        resampling: How its images must have been resized.
    """
    if size is None or dataset.folder.resolve() == dataset.image_root.resolve():
        return None  # a plain folder belongs to the user and has no cache
    folder = cache_folder(dataset, size, resampling)
    if not folder.is_dir():
        return None
    option = "" if resampling == "area" else f" --cache-resampling {resampling}"
    advice = f"run `udaseg prepare {dataset.name} --cache {cache_word(size)}{option}` again"
    manifest = read_cache_manifest(folder)
    if not manifest:
        log.warning("%s: the cache is incomplete and is ignored; %s", folder, advice)
        return None
    rows = manifest["files"]
    cache = Cache(folder, size, manifest["form"], resampling=resampling)
    stale = [
        sample.image
        for sample in dataset.split(split)
        if not is_up_to_date(dataset, cache, sample, rows.get(sample.image), labelled=labelled)
    ]
    if stale:
        log.warning(
            "%s: the cache is stale and is ignored: %d images are new or changed (%s%s); %s",
            folder,
            len(stale),
            ", ".join(stale[:_MAX_NAMES_SHOWN]),
            ", ..." if len(stale) > _MAX_NAMES_SHOWN else "",
            advice,
        )
        return None
    if cache.format == "raw":
        try:
            import_zstd()
        except EnvironmentFault as error:
            log.warning("%s: the cache is ignored: %s", folder, error)
            return None
    samples = dataset.split(split)
    stamps = {sample.image: cache.stamp(sample, labelled=labelled) for sample in samples}
    return replace(cache, stamps=stamps)


def is_up_to_date(
    dataset: PreparedDataset, cache: Cache, sample: Sample, row: Any, *, labelled: bool
) -> bool:
    """Return whether the cached image, and label if `labelled`, are those of a manifest's row."""
    if row is None:
        return False
    image_stamp, image_bytes, *label = row
    if image_stamp != stamp_of_image(dataset, sample):
        return False
    if image_bytes != _file_size(cache.image_path(sample)):
        return False
    return not labelled or label == [
        file_stamp(dataset.label_path(sample)),
        _file_size(cache.label_path(sample)),
    ]


def stamp_of_image(dataset: PreparedDataset, sample: Sample) -> str:
    """Return a text that changes with the image file, and with how its bits and bands are read."""
    stamp = file_stamp(dataset.image_path(sample))
    read = [str(each) for each in (dataset.bits, dataset.bands) if each]
    return " ".join([stamp, *read])


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
