"""Measure how much faster a cache is read than the original files."""

import time
from dataclasses import replace
from statistics import median

import cv2

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.files.images import keep_freed_memory
from udaseg.data.loading.cache import Cache
from udaseg.data.loading.crops import CropSource

_SAMPLES = 8
_ROUNDS = 3


def measure_cache_speedup(dataset: PreparedDataset, cache: Cache) -> float | None:
    """Return how many times faster a decoded, resized sample is read from `cache`.

    The result is the median over a few fixed samples. Each is timed as CPU time of one thread, the
    minimum of a few rounds; time spent waiting for the disk does not count.

    Returns:
        The speed-up; None if the cache contains no image of the dataset.

    Raises:
        DataError: A file cannot be read.
    """
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    cached = [
        sample for split in splits for sample in dataset.split(split) if cache.contains(sample)
    ]
    if not cached:
        return None
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in a loader process
    keep_freed_memory()
    ratios = []
    try:
        for sample in cached[:: -(-len(cached) // _SAMPLES)]:
            from_files = CropSource(
                dataset,
                "",
                cache.size,
                cache.size,
                flip=False,
                labelled=sample.label is not None,
            )
            seconds = []
            for crops in (from_files, replace(from_files, cache=cache)):
                rounds = []
                for _ in range(_ROUNDS):
                    started = time.thread_time()
                    crops.read(sample)
                    rounds.append(time.thread_time() - started)
                seconds.append(min(rounds))
            ratios.append(seconds[0] / max(seconds[1], 1e-9))
    finally:
        cv2.setNumThreads(threads)
    return median(ratios)
