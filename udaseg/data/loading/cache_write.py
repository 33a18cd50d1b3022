"""Write a cache of images and labels at training resolution; resumable, unused until complete."""

import json
import shutil
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels, keep_freed_memory, read_bytes, write_png
from udaseg.data.files.orientation import read_orientation
from udaseg.data.files.threads import map_in_threads
from udaseg.data.loading import cache as caches
from udaseg.data.loading.cache import Cache, CacheFormat
from udaseg.data.loading.crops import CropSource
from udaseg.data.loading.packed import import_zstd, pack
from udaseg.files import (
    disk_full,
    file_lock,
    file_stamp,
    free_disk_space,
    sync_to_disk,
    write_atomic,
)

CACHE_JOURNAL_NAME = "journal.jsonl"

_SAMPLES_FOR_ESTIMATE = 16
"""Images after which the total size is estimated."""

_SAMPLES_FOR_SPEEDUP = 8


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
    size: tuple[int, int],
    form: CacheFormat = "png",
    *,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheReport:
    """Cache the images of the training split at `size`, next to the index of a prepared dataset.

    Uses the split `train` if it exists, otherwise all splits. Up-to-date files are kept, so a
    killed run can be resumed. The user's own files are only read.

    Args:
        dataset: A prepared dataset.
        size: (height, width), as in the recipe's `resize`.
        form: `png`, or `raw`: four times faster to read, needs zstd.
        workers: Threads; -1 uses one per core.
        on_progress: Called with the number of finished images and the total.
    """
    started = time.monotonic()
    if form == "raw":
        import_zstd()
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    samples = list({s.image: s for split in splits for s in dataset.splits[split]}.values())
    cache = Cache(caches.cache_folder(dataset, size), size, form)
    with file_lock(dataset.folder.parent / f".{dataset.folder.name}.lock"):
        rows = _reusable_rows(dataset, cache, samples)
        reused = len(rows)
        manifest = caches.read_cache_manifest(cache.folder)
        if reused < len(samples) or manifest is None or manifest["files"] != rows:
            cache.folder.mkdir(parents=True, exist_ok=True)
            _write_samples(dataset, cache, samples, rows, workers, on_progress)
            sync_to_disk()  # the manifest promises that all files are complete
            document = {"version": caches.CACHE_VERSION, "form": form, "size": size, "files": rows}
            write_atomic(cache.folder / caches.CACHE_MANIFEST_NAME, json.dumps(document).encode())
            _remove_other_files(cache, samples)
    cache = replace(cache, uncached=caches.uncached_images(rows))
    return CacheReport(
        cache,
        images=len(rows) - len(cache.uncached),
        written=len(samples) - reused,
        size_bytes=sum((row[1] or 0) + (row[3] or 0) for row in rows.values()),
        seconds=time.monotonic() - started,
        speedup=_measure_speedup(dataset, cache, samples),
    )


def _reusable_rows(
    dataset: PreparedDataset, cache: Cache, samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return the rows of up-to-date files, of a killed run or else of a complete cache."""
    form, rows = _known_rows(cache.folder)
    if cache.folder.is_dir() and form != cache.format:
        shutil.rmtree(cache.folder)
        return {}
    return {
        s.image: rows[s.image]
        for s in samples
        if caches.is_up_to_date(dataset, cache, s, rows.get(s.image), labelled=s.label is not None)
    }


def _known_rows(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return format and rows of an unfinished run, or else of a complete cache."""
    form, rows = None, {}
    try:
        first, *lines = (folder / CACHE_JOURNAL_NAME).read_text(encoding="utf-8").splitlines()
        form = str(json.loads(first))
        for line in lines:
            name, row = json.loads(line)
            rows[name] = row
    except (OSError, ValueError):
        pass  # keep the rows before the last line, which may be incomplete
    manifest = caches.read_cache_manifest(folder)
    if form is None and manifest is not None:
        return manifest["form"], manifest["files"]
    return form, rows


def _write_samples(
    dataset: PreparedDataset,
    cache: Cache,
    samples: Sequence[Sample],
    rows: dict[str, Any],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write the files of samples without a row, and add their rows, also to the journal."""
    journal_path = cache.folder / CACHE_JOURNAL_NAME
    header = [cache.format, *rows.items()]
    write_atomic(journal_path, "".join(f"{json.dumps(line)}\n" for line in header).encode())
    remaining, sizes = len(samples) - len(rows), list[int]()

    def write(sample: Sample) -> list[Any] | None:
        return None if sample.image in rows else _write_sample(dataset, cache, sample)

    with journal_path.open("a", encoding="utf-8") as journal:
        for sample, row in map_in_threads(write, samples, workers, on_progress):
            if row is None:
                continue
            rows[sample.image] = row
            journal.write(json.dumps((sample.image, row)) + "\n")
            journal.flush()
            sizes.append((row[1] or 0) + (row[3] or 0))
            if len(sizes) == _SAMPLES_FOR_ESTIMATE:
                needed = (remaining - len(sizes)) * sum(sizes) // len(sizes)
                if needed > free_disk_space(cache.folder):
                    raise disk_full(cache.folder, needed)


def _write_sample(dataset: PreparedDataset, cache: Cache, sample: Sample) -> list[Any]:
    """Write the files of one sample; return its row for the manifest."""
    # The stamps are taken before reading, so a change during the read is detected later.
    original, labelled = dataset.image_path(sample), sample.label is not None
    image_stamp = file_stamp(original)
    if labelled and _is_rotated_by_exif(original):
        return [image_stamp, None, None, None]
    label_stamp = file_stamp(dataset.label_path(sample)) if labelled else None
    image, labels = _originals(dataset, cache, sample).read(sample)
    image_bytes = _write_pixels(cache.image_path(sample), image, cache.format)
    label_bytes = _write_pixels(cache.label_path(sample), labels, cache.format)
    return [image_stamp, image_bytes, label_stamp, label_bytes]


def _is_rotated_by_exif(path: Path) -> bool:
    """Return whether EXIF rotates the image; it is not cached, as source and target differ then."""
    data = read_bytes(path)  # Pillow would decode a PNG to search it
    return (b"Exif" in data or b"eXIf" in data) and read_orientation(path) != 1


def _originals(dataset: PreparedDataset, cache: Cache, sample: Sample) -> CropSource:
    """Return what reads a sample from its original files, at the size of the cache."""
    labelled = sample.label is not None
    return CropSource(dataset, "", cache.size, cache.size, flip=False, labelled=labelled)


def _write_pixels(path: Path, pixels: Pixels | None, form: CacheFormat) -> int:
    """Write pixels, if there are any; return the size of the file."""
    if pixels is None:
        return 0
    if form == "raw":
        write_atomic(path, pack(pixels))
    else:
        write_png(path, pixels)
    return path.stat().st_size


def _remove_other_files(cache: Cache, samples: Sequence[Sample]) -> None:
    """Remove the journal, and cached files of images that are no longer in the dataset."""
    expected = {cache.folder / caches.CACHE_MANIFEST_NAME}
    for sample in samples:
        expected |= {cache.image_path(sample), cache.label_path(sample)}
    for path in cache.folder.rglob("*"):
        if path.is_file() and path not in expected:
            path.unlink()


def _measure_speedup(
    dataset: PreparedDataset, cache: Cache, samples: Sequence[Sample]
) -> float | None:
    """Return the ratio of CPU times to read originals and cache, the median over a few samples."""
    samples = [sample for sample in samples if sample.image not in cache.uncached]
    if not samples:
        return None

    def seconds(read: Callable[[Sample], object], sample: Sample) -> float:
        # of this thread: waiting for the disk does not count
        timer = timeit.Timer(partial(read, sample), timer=time.thread_time)
        return min(timer.repeat(repeat=3, number=1))

    def ratio(sample: Sample) -> float:
        originals = _originals(dataset, cache, sample)
        cached = replace(originals, cache=cache)
        return seconds(originals.read, sample) / max(seconds(cached.read, sample), 1e-9)

    keep_freed_memory()  # as in a loader process
    chosen = samples[:: -(-len(samples) // _SAMPLES_FOR_SPEEDUP)]
    return median(speedup for _, speedup in map_in_threads(ratio, chosen, 1))
