"""How much faster a cache is read than the files that it was made from, measured here and now."""

import time
from dataclasses import replace
from statistics import median

import cv2

from udaseg.data.cache import Cache
from udaseg.data.crops import Crops
from udaseg.data.index import PreparedDataset
from udaseg.data.memory import keep_freed_memory

_SAMPLES = 8
_ROUNDS = 3


def speed_up(dataset: PreparedDataset, cache: Cache) -> float | None:
    """Return how many times faster a sample is read from `cache`, decoded and at its size.

    The median over a few samples of the CPU time of one thread, each the least of a few rounds. The
    samples are always the same; waiting for the disk is not counted.

    Args:
        dataset: The set.
        cache: One of its caches.

    Returns:
        None when the cache has none of its images.

    Raises:
        DataError: A file cannot be read.
    """
    splits = ["train"] if "train" in dataset.splits else list(dataset.splits)
    held = [one for split in splits for one in dataset.split(split) if cache.holds(one)]
    if not held:
        return None
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in a process that loads
    keep_freed_memory()
    ratios = []
    try:
        for sample in held[:: -(-len(held) // _SAMPLES)]:
            own = Crops(
                *(dataset, "", cache.size, cache.size),
                flip=False,
                labelled=sample.label is not None,
            )
            seconds = []
            for crops in (own, replace(own, cache=cache)):
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
