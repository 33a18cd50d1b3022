"""Making a cache: every image and label at training resolution, resumable, whole or not used."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.cache import (
    CACHE_VERSION,
    MANIFEST,
    Cache,
    CacheFormat,
    cache_folder,
    current,
    left_out_of,
    read_manifest,
    stamp,
)
from udaseg.data.crops import Crops
from udaseg.data.durable import written_out
from udaseg.data.images import read_bytes, read_image, write_atomic, write_png
from udaseg.data.index import PreparedDataset, Sample
from udaseg.data.lock import held
from udaseg.data.packed import pack, zstd
from udaseg.data.room import free, no_room
from udaseg.data.threads import in_threads

JOURNAL = "journal.jsonl"

_TRIED = 16
"""Images after which the rest's size is foreseen."""


@dataclass(frozen=True)
class CacheReport:
    """What making a cache gave.

    Attributes:
        cache: The cache.
        images: Images in it.
        made: Images that were made now; the others were there.
        size_bytes: Of all its files.
        seconds: Wall time.
    """

    cache: Cache
    images: int
    made: int
    size_bytes: int
    seconds: float


def write_cache(
    dataset: PreparedDataset,
    size: tuple[int, int],
    form: CacheFormat = "png",
    *,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheReport:
    """Write the images of the training split at `size` beside the index of a prepared set.

    Takes the split `train` where there is one, otherwise all. What is there and still holds is
    kept, so a run that was killed goes on. The user's own files are read and never written.

    Args:
        dataset: A prepared set.
        size: (height, width), as the recipe's `resize`.
        form: `png`, or `raw`: four times faster to read, with zstd.
        workers: Threads; -1 takes one a core.
        on_progress: Called with the images done and the images in all.

    Raises:
        DataError: An image or label cannot be read.
        EnvironmentFault: No zstd for `raw`, or no room on the disk.
    """
    started = time.monotonic()
    if form == "raw":
        zstd()
    with held(dataset.folder.parent / f".{dataset.folder.name}.lock"):
        cache = Cache(cache_folder(dataset, size), size, form)
        samples = _samples(dataset)
        rows = _kept(dataset, cache, samples)
        jobs = [sample for sample in samples.values() if sample.image not in rows]
        if jobs or (read_manifest(cache.folder) or {"files": {}})["files"] != rows:
            cache.folder.mkdir(parents=True, exist_ok=True)
            _make(dataset, cache, jobs, rows, workers, on_progress)
            written_out()  # the manifest says that all files are whole
            document = {"version": CACHE_VERSION, "form": form, "size": size, "files": rows}
            write_atomic(cache.folder / MANIFEST, json.dumps(document).encode())
            (cache.folder / JOURNAL).unlink(missing_ok=True)
            _remove_others(cache, samples)
    left_out = left_out_of(rows)
    total = sum((row[1] or 0) + (row[3] or 0) for row in rows.values())
    return CacheReport(
        Cache(cache.folder, size, form, left_out),
        *(len(rows) - len(left_out), len(jobs), total, time.monotonic() - started),
    )


def _samples(dataset: PreparedDataset) -> dict[str, Sample]:
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    return {sample.image: sample for split in splits for sample in dataset.split(split)}


def _kept(dataset: PreparedDataset, cache: Cache, samples: dict[str, Sample]) -> dict[str, Any]:
    """Return what is there and still holds: of a whole cache, and of a run that was killed."""
    manifest = read_manifest(cache.folder) or {"form": None, "files": {}}
    form, lines = _journal(cache.folder)
    if cache.folder.is_dir() and cache.form not in (manifest["form"], form):
        shutil.rmtree(cache.folder)
        return {}
    rows = dict(manifest["files"]) if manifest["form"] == cache.form else {}
    if form is not None:
        rows |= lines if form == cache.form else {}
        for left in cache.folder.rglob(".*.tmp"):
            left.unlink(missing_ok=True)
    return {
        name: rows[name]
        for name, sample in samples.items()
        if name in rows
        and current(dataset, cache, sample, rows[name], labelled=sample.label is not None)
    }


def _journal(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return format and rows of an unfinished run; its last line may be torn."""
    form, rows = None, {}
    try:
        first, *lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
        form = str(json.loads(first))
        for line in lines:
            name, row = json.loads(line)
            rows[name] = row
    except (OSError, ValueError, TypeError):
        pass  # what was read before the torn line counts
    return form, rows


def _make(
    dataset: PreparedDataset,
    cache: Cache,
    jobs: Sequence[Sample],
    rows: dict[str, Any],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write the files of `jobs` and add their rows; each is in the journal once it is whole."""
    head = [json.dumps(cache.form), *(json.dumps(item) for item in rows.items())]
    write_atomic(cache.folder / JOURNAL, ("\n".join(head) + "\n").encode())
    before, made_bytes = len(rows), 0
    if on_progress is not None:
        on_progress(before, before + len(jobs))

    def write(sample: Sample) -> list[Any]:
        return _row(dataset, cache, sample)

    with (cache.folder / JOURNAL).open("a", encoding="utf-8") as journal:
        for done, (sample, row) in enumerate(in_threads(write, jobs, workers), 1):
            rows[sample.image] = row
            journal.write(json.dumps((sample.image, row)) + "\n")
            journal.flush()
            made_bytes += (row[1] or 0) + (row[3] or 0)
            if done == _TRIED:
                left = (len(jobs) - done) * made_bytes // done
                if left > free(cache.folder):
                    raise no_room(cache.folder, left)
            if on_progress is not None:
                on_progress(before + done, before + len(jobs))


def _row(dataset: PreparedDataset, cache: Cache, sample: Sample) -> list[Any]:
    """Write the files of one sample; return stamp and bytes of image and label."""
    # taken first: a file that changes while it is read is found to have changed
    seen = stamp(dataset.image_path(sample))
    labelled = sample.label is not None
    if labelled and _turned(dataset.image_path(sample)):
        return [seen, None, None, None]
    label_seen = stamp(dataset.label_path(sample)) if labelled else None
    crops = Crops(dataset, "", cache.size, cache.size, flip=False, labelled=labelled)
    image, labels = crops.read(sample)
    image_bytes = _write(cache.image_path(sample), image, cache.form)
    label_bytes = 0 if labels is None else _write(cache.label_path(sample), labels, cache.form)
    return [seen, image_bytes, label_seen, label_bytes]


def _write(path: Path, pixels: NDArray[np.uint8], form: CacheFormat) -> int:
    if form == "raw":
        write_atomic(path, pack(pixels))
    else:
        write_png(path, pixels)
    return path.stat().st_size


def _remove_others(cache: Cache, samples: Mapping[str, Sample]) -> None:
    """Remove what is left of images that the set no longer has."""
    wanted = {cache.folder / MANIFEST}
    for sample in samples.values():
        wanted |= {cache.image_path(sample), cache.label_path(sample)}
    for path in cache.folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def _turned(path: Path) -> bool:
    """Return whether a viewer would turn the image: a source and a target read it differently."""
    data = read_bytes(path)
    if b"Exif" not in data and b"eXIf" not in data:
        return False
    stored, upright = read_image(path), read_image(path, upright=True)
    return stored.shape != upright.shape or bool((stored != upright).any())
