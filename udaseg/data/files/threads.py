"""Process many files in threads; decoding and hashing run in parallel."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def map_in_threads(
    work: Callable[[Job], Outcome],
    jobs: Sequence[Job],
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome, in order; an exception of `work` is raised here.

    OpenCV's own threads are off meanwhile: each file uses one thread. -1 workers are one per core.
    `on_progress` gets the number of outcomes that the caller is done with, and of all jobs.
    """
    if on_progress is not None:
        on_progress(0, len(jobs))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers if workers > 0 else os.cpu_count())
    try:
        for done, (job, outcome) in enumerate(zip(jobs, pool.map(work, jobs), strict=True), 1):
            yield job, outcome
            if on_progress is not None:
                on_progress(done, len(jobs))
    finally:  # also on Ctrl-C: drop jobs that have not started
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)
