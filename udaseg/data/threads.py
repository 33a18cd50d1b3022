"""Work on many files in threads; decoding and hashing let the threads run at once."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def in_threads(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome, in order.

    OpenCV's own threads are off meanwhile: a file is one thread's.

    Args:
        work: What is done with a job; what it raises is raised here.
        jobs: All of them.
        workers: Threads; -1 takes one a core.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers if workers > 0 else os.cpu_count())
    try:
        yield from zip(jobs, pool.map(work, jobs), strict=True)
    finally:  # on Ctrl-C too: what has not begun is dropped
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)
