"""Files processed in threads, and processes of our own, started from any program."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
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
) -> Generator[tuple[Job, Outcome], None, None]:
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


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes in this context that do not import the user's program.

    A spawned process imports the main module first. In a script without `if __name__ ==
    "__main__"` it would run the whole script again. Our processes need nothing of it.
    """
    main = vars(sys.modules["__main__"])
    kept: dict[str, object] = {
        name: main[name] for name in ("__file__", "__spec__") if name in main
    }
    main.update(dict.fromkeys(kept))  # None: not in a file, not in a package
    try:
        yield
    finally:
        main.update(kept)
