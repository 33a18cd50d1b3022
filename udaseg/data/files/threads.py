"""Process many files in threads; decoding and hashing run in parallel."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def map_in_threads(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome, in order.

    OpenCV's own threads are off meanwhile: each file uses one thread.

    Args:
        work: Called with each job; its exceptions are raised here.
        jobs: The jobs.
        workers: Number of threads; -1 uses one per core.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers if workers > 0 else os.cpu_count())
    try:
        yield from zip(jobs, pool.map(work, jobs), strict=True)
    finally:  # also on Ctrl-C: drop jobs that have not started
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)
