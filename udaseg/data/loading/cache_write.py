"""Write a cache of images and labels at training resolution; resumable, unused until complete."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import read_bytes, read_image, write_png
from udaseg.data.files.threads import map_in_threads
from udaseg.data.loading.cache import (
    CACHE_MANIFEST_NAME,
    CACHE_VERSION,
    Cache,
    CacheFormat,
    cache_folder,
    is_up_to_date,
    read_cache_manifest,
    uncached_images,
)
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


@dataclass(frozen=True)
class CacheReport:
    """Result of writing a cache.

    Attributes:
        cache: The cache.
        images: Number of cached images.
        written: Number of images written by this run; the others already existed.
        size_bytes: Size of all cached files.
        seconds: Wall time.
        speedup: How many times as fast the cache is read as the original files; None if unknown.
    """

    cache: Cache
    images: int
    written: int
    size_bytes: int
    seconds: float
    speedup: float | None = None


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

    Raises:
        DataError: An image or label cannot be read.
        EnvironmentFault: zstd is missing for `raw`, or there is not enough disk space.
    """
    started = time.monotonic()
    if form == "raw":
        import_zstd()
    with file_lock(dataset.folder.parent / f".{dataset.folder.name}.lock"):
        cache = Cache(cache_folder(dataset, size), size, form)
        samples = _samples_to_cache(dataset)
        rows = _reusable_rows(dataset, cache, samples)
        jobs = [sample for sample in samples.values() if sample.image not in rows]
        if jobs or (read_cache_manifest(cache.folder) or {"files": {}})["files"] != rows:
            cache.folder.mkdir(parents=True, exist_ok=True)
            _write_samples(dataset, cache, jobs, rows, workers, on_progress)
            sync_to_disk()  # the manifest promises that all files are complete
            document = {"version": CACHE_VERSION, "form": form, "size": size, "files": rows}
            write_atomic(cache.folder / CACHE_MANIFEST_NAME, json.dumps(document).encode())
            (cache.folder / CACHE_JOURNAL_NAME).unlink(missing_ok=True)
            _remove_other_files(cache, samples)
    left_out = uncached_images(rows)
    total = sum((row[1] or 0) + (row[3] or 0) for row in rows.values())
    return CacheReport(
        Cache(cache.folder, size, form, left_out),
        len(rows) - len(left_out),
        len(jobs),
        total,
        time.monotonic() - started,
    )


def _samples_to_cache(dataset: PreparedDataset) -> dict[str, Sample]:
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    return {sample.image: sample for split in splits for sample in dataset.split(split)}


def _reusable_rows(
    dataset: PreparedDataset, cache: Cache, samples: dict[str, Sample]
) -> dict[str, Any]:
    """Return the rows of up-to-date files, from a complete cache and from a killed run."""
    manifest = read_cache_manifest(cache.folder) or {"form": None, "files": {}}
    form, journal_rows = _read_journal(cache.folder)
    if cache.folder.is_dir() and cache.format not in (manifest["form"], form):
        shutil.rmtree(cache.folder)
        return {}
    rows = dict(manifest["files"]) if manifest["form"] == cache.format else {}
    if form is not None:
        rows |= journal_rows if form == cache.format else {}
        for leftover in cache.folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return {
        name: rows[name]
        for name, sample in samples.items()
        if name in rows
        and is_up_to_date(dataset, cache, sample, rows[name], labelled=sample.label is not None)
    }


def _read_journal(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return format and rows of an unfinished run; its last line may be incomplete."""
    form, rows = None, {}
    try:
        first, *lines = (folder / CACHE_JOURNAL_NAME).read_text(encoding="utf-8").splitlines()
        form = str(json.loads(first))
        for line in lines:
            name, row = json.loads(line)
            rows[name] = row
    except (OSError, ValueError, TypeError):
        pass  # keep the rows before the incomplete line
    return form, rows


def _write_samples(
    dataset: PreparedDataset,
    cache: Cache,
    jobs: Sequence[Sample],
    rows: dict[str, Any],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write the files of `jobs` and add their rows; journal each sample once it is complete."""
    header = [json.dumps(cache.format), *(json.dumps(item) for item in rows.items())]
    write_atomic(cache.folder / CACHE_JOURNAL_NAME, ("\n".join(header) + "\n").encode())
    reused, written_bytes = len(rows), 0
    if on_progress is not None:
        on_progress(reused, reused + len(jobs))

    def write(sample: Sample) -> list[Any]:
        return _write_sample(dataset, cache, sample)

    with (cache.folder / CACHE_JOURNAL_NAME).open("a", encoding="utf-8") as journal:
        for done, (sample, row) in enumerate(map_in_threads(write, jobs, workers), 1):
            rows[sample.image] = row
            journal.write(json.dumps((sample.image, row)) + "\n")
            journal.flush()
            written_bytes += (row[1] or 0) + (row[3] or 0)
            if done == _SAMPLES_FOR_ESTIMATE:
                remaining_bytes = (len(jobs) - done) * written_bytes // done
                if remaining_bytes > free_disk_space(cache.folder):
                    raise disk_full(cache.folder, remaining_bytes)
            if on_progress is not None:
                on_progress(reused + done, reused + len(jobs))


def _write_sample(dataset: PreparedDataset, cache: Cache, sample: Sample) -> list[Any]:
    """Write the files of one sample; return stamp and bytes of image and label."""
    # The stamp is taken before reading, so a change during the read is detected later.
    image_stamp = file_stamp(dataset.image_path(sample))
    labelled = sample.label is not None
    if labelled and _is_rotated_by_exif(dataset.image_path(sample)):
        return [image_stamp, None, None, None]
    label_stamp = file_stamp(dataset.label_path(sample)) if labelled else None
    crops = CropSource(dataset, "", cache.size, cache.size, flip=False, labelled=labelled)
    image, labels = crops.read(sample)
    image_bytes = _write_pixels(cache.image_path(sample), image, cache.format)
    label_bytes = (
        0 if labels is None else _write_pixels(cache.label_path(sample), labels, cache.format)
    )
    return [image_stamp, image_bytes, label_stamp, label_bytes]


def _write_pixels(path: Path, pixels: NDArray[np.uint8], form: CacheFormat) -> int:
    if form == "raw":
        write_atomic(path, pack(pixels))
    else:
        write_png(path, pixels)
    return path.stat().st_size


def _remove_other_files(cache: Cache, samples: Mapping[str, Sample]) -> None:
    """Remove cached files of images that are no longer in the dataset."""
    expected = {cache.folder / CACHE_MANIFEST_NAME}
    for sample in samples.values():
        expected |= {cache.image_path(sample), cache.label_path(sample)}
    for path in cache.folder.rglob("*"):
        if path.is_file() and path not in expected:
            path.unlink()


def _is_rotated_by_exif(path: Path) -> bool:
    """Return whether EXIF rotates the image; it is not cached, as source and target differ then."""
    data = read_bytes(path)
    if b"Exif" not in data and b"eXIf" not in data:
        return False
    stored, upright = read_image(path), read_image(path, apply_exif=True)
    return stored.shape != upright.shape or bool((stored != upright).any())
