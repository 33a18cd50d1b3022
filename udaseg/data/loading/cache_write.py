"""Write a cache of images and labels at training resolution; resumable, unused until complete."""

import json
import shutil
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from udaseg import files
from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.forms import parse_form
from udaseg.data.files.images import Pixels, keep_freed_memory, write_png
from udaseg.data.files.parallel import map_in_threads
from udaseg.data.loading import cache as caches
from udaseg.data.loading.cache import Cache, CacheFormat
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.packed import import_zstd, pack
from udaseg.data.loading.transforms import Resampling
from udaseg.sizes import Resize, plain_size

CACHE_JOURNAL_NAME = f"journal-{caches.CACHE_VERSION}.jsonl"

_SAMPLES_FOR_ESTIMATE = 16
"""Images after which the total size is estimated."""

_MAX_SAMPLES_FOR_SPEEDUP = 8


@dataclass(frozen=True)
class CacheReport:
    """Result of writing a cache.

    Attributes:
        images: Number of cached images.
        written: Number of images written by this run; the others already existed.
        size_bytes: Size of all cached files.
        speedup: How many times as fast the cache is read as the original files; None if empty.
    """

    cache: Cache
    images: int
    written: int
    size_bytes: int
    seconds: float
    speedup: float | None


def write_cache(
    dataset: PreparedDataset,
    size: Resize,
    form: CacheFormat = "png",
    *,
    resampling: Resampling = "area",
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheReport:
    """Cache the images of the training split at `size`, next to the index of a prepared dataset.

    Uses the split `train` if it exists, otherwise all splits. Up-to-date files are kept, so a
    killed run can be resumed. The user's own files are only read.

    Args:
        dataset: A prepared dataset.
        size: (height, width) or the shorter side, as in the recipe's `resize`.
        form: `png`, or `raw`: four times faster to read, needs zstd.
        resampling: As in the recipe.
        workers: Threads; -1 uses one per core.
        on_progress: Called with the number of finished images and the total.
    """
    started = time.monotonic()
    if form == "raw":
        import_zstd()
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    samples = {s.image: s for split in splits for s in dataset.splits[split]}
    folder = caches.cache_folder(dataset, size, resampling)
    writer = _Writer(dataset, Cache(folder, size, form, resampling=resampling), samples)
    with files.file_lock(dataset.folder.parent / f".{dataset.folder.name}.lock"):
        rows = writer.reusable_rows()
        reused = len(rows)
        if reused < len(samples) or caches.read_cache_manifest(folder).get("files") != rows:
            folder.mkdir(parents=True, exist_ok=True)
            writer.write_missing(rows, workers, on_progress)
            files.sync_to_disk()  # the manifest promises that all files are complete
            plain = plain_size(size)
            document = {"version": caches.CACHE_VERSION, "form": form, "size": plain, "files": rows}
            files.write_atomic(folder / caches.CACHE_MANIFEST_NAME, json.dumps(document).encode())
            writer.remove_other_files()
    return CacheReport(
        writer.cache,
        images=len(rows),
        written=len(samples) - reused,
        size_bytes=sum(map(_row_bytes, rows.values())),
        seconds=time.monotonic() - started,
        speedup=writer.measure_speedup(),
    )


@dataclass(frozen=True)
class _Writer:
    """Writes the cached files of `samples`, by image name, and their rows in the manifest."""

    dataset: PreparedDataset
    cache: Cache
    samples: Mapping[str, Sample]

    def reusable_rows(self) -> dict[str, Any]:
        """Return the rows of up-to-date files, of a killed run or else of a complete cache."""
        form, rows = _known_rows(self.cache.folder)
        if self.cache.folder.is_dir() and form != self.cache.format:
            shutil.rmtree(self.cache.folder)
            return {}
        return {
            name: rows[name]
            for name, sample in self.samples.items()
            if caches.is_up_to_date(
                self.dataset, self.cache, sample, rows.get(name), labelled=sample.label is not None
            )
        }

    def write_missing(
        self, rows: dict[str, Any], workers: int, on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Write the files of samples without a row, and add their rows, also to the journal."""
        path = self.cache.folder / CACHE_JOURNAL_NAME
        header = [self.cache.format, *rows.items()]
        files.write_atomic(path, "".join(f"{json.dumps(line)}\n" for line in header).encode())
        missing, sizes = len(self.samples) - len(rows), list[int]()

        def write(name: str) -> list[Any] | None:
            return None if name in rows else self.write_sample(self.samples[name])

        with path.open("a", encoding="utf-8") as journal:
            for name, row in map_in_threads(write, list(self.samples), workers, on_progress):
                if row is None:
                    continue
                rows[name] = row
                journal.write(json.dumps((name, row)) + "\n")
                journal.flush()
                sizes.append(_row_bytes(row))
                if len(sizes) == _SAMPLES_FOR_ESTIMATE:
                    needed = (missing - len(sizes)) * sum(sizes) // len(sizes)
                    if needed > files.free_disk_space(self.cache.folder):
                        raise files.disk_full(self.cache.folder, needed)

    def write_sample(self, sample: Sample) -> list[Any]:
        """Write the files of one sample; return its row."""
        # The stamps are taken before reading, so a change during the read is detected later.
        image_stamp, label_stamp = caches.stamp_of_image(self.dataset, sample), None
        if sample.label is not None:
            label_stamp = files.file_stamp(self.dataset.label_path(sample))
        image, labels = self._originals(sample).read(sample)
        image_bytes = self._write_pixels(self.cache.image_path(sample), image)
        label_bytes = self._write_pixels(self.cache.label_path(sample), labels)
        return [image_stamp, image_bytes, label_stamp, label_bytes]

    def _originals(self, sample: Sample) -> CropSource:
        """Return what reads a sample from its original files, at the size of the cache."""
        size, labelled = self.cache.size, sample.label is not None
        resampling = self.cache.resampling
        return CropSource(
            self.dataset, "", size, (1, 1), flip=False, labelled=labelled, resampling=resampling
        )

    def _write_pixels(self, path: Path, pixels: Pixels | None) -> int:
        """Write pixels, if there are any; return the size of the file."""
        if pixels is None:
            return 0
        if self.cache.format == "raw":
            files.write_atomic(path, pack(pixels))
        else:
            write_png(path, pixels)
        return path.stat().st_size

    def remove_other_files(self) -> None:
        """Remove the journal, and cached files of images that are no longer in the dataset."""
        expected = {self.cache.folder / caches.CACHE_MANIFEST_NAME}
        for sample in self.samples.values():
            expected |= {self.cache.image_path(sample), self.cache.label_path(sample)}
        for path in self.cache.folder.rglob("*"):
            if path.is_file() and path not in expected:
                path.unlink()

    def measure_speedup(self) -> float | None:
        """Return the ratio of CPU times to read originals and cache, the median of some samples."""
        names = list(self.samples)
        keep_freed_memory()  # as in a loader process
        some = names[:: len(names) // _MAX_SAMPLES_FOR_SPEEDUP + 1]
        ratios = [ratio for _, ratio in map_in_threads(self._speedup, some, 1)]
        return median(ratios) if ratios else None

    def _speedup(self, name: str) -> float:
        originals, sample = self._originals(self.samples[name]), self.samples[name]
        slow, fast = (
            # CPU time of this thread: waiting for the disk does not count
            min(timeit.Timer(partial(crops.read, sample), timer=time.thread_time).repeat(3, 1))
            for crops in (originals, replace(originals, cache=self.cache))
        )
        return slow / max(fast, 1e-9)


def _known_rows(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return format and rows of an unfinished run, or else of a complete cache."""
    form, rows = None, {}
    try:
        first, *lines = (folder / CACHE_JOURNAL_NAME).read_text(encoding="utf-8").splitlines()
        form = parse_form(first, str)
        for line in lines:
            name, row = parse_form(line, tuple[str, caches.CacheRow])
            rows[name] = row
    except (OSError, ValueError):
        pass  # keep the rows before the last line, which may be incomplete
    if form is None:
        manifest = caches.read_cache_manifest(folder)
        return manifest.get("form"), manifest.get("files", {})
    return form, rows


def _row_bytes(row: Sequence[Any]) -> int:
    """Return the bytes of the cached image and label of a row."""
    _, image_bytes, _, label_bytes = row
    return int(image_bytes + label_bytes)
