"""Work on many images in threads: files read ahead, batches of one size, results in order.

A `Limit` bounds how much each part holds, so memory does not grow with the number of images.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

_READERS = min(4, os.cpu_count() or 1)
_Job = TypeVar("_Job")
_Item = TypeVar("_Item")

ITEMS_AHEAD = _READERS + 2
"""Items that are read, or wait, before those that are in use."""


@dataclass(frozen=True)
class Limit:
    """How much a part of a pipeline may hold at a time.

    Attributes:
        items: Number of images.
        pixels: Pixels of all these images together, for images of any size.
    """

    items: int
    pixels: float = math.inf

    def exceeded(self, pixels: Sequence[int]) -> bool:
        """Return whether items with these pixels are too much."""
        return len(pixels) > self.items or sum(pixels) > self.pixels


_FEW_ITEMS = Limit(ITEMS_AHEAD + 1)


def read_ahead(
    read: Callable[[_Job], _Item],
    jobs: Iterable[_Job],
    limit: Limit = _FEW_ITEMS,
    *,
    pixels_of: Callable[[_Job], int] = lambda _: 0,
    workers: int = _READERS,
) -> Generator[_Item, None, None]:
    """Yield the results of `read` in order, reading a few jobs ahead in threads.

    OpenCV decodes without holding the interpreter lock, so threads are as fast as processes. A job
    that would exceed the limit is begun only once the results before it are consumed.

    Args:
        read: Called in a thread; its exceptions are raised here, in its turn.
        jobs: Arguments of `read`.
        limit: Results that are being read or wait to be consumed.
        pixels_of: Returns the pixels of a job, for the limit; called before it is read.
        workers: Number of threads.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[int, Future[_Item]]] = deque()
    try:
        for job in jobs:
            pixels = pixels_of(job)
            while waiting and limit.exceeded([pixels, *(size for size, _ in waiting)]):
                yield waiting.popleft()[1].result()
            waiting.append((pixels, pool.submit(read, job)))
        while waiting:
            yield waiting.popleft()[1].result()
    finally:  # after an error or a signal, cancel jobs that have not started
        pool.shutdown(cancel_futures=True)


def batches_of_one_size(
    items: Iterable[_Item],
    shape_of: Callable[[_Item], tuple[int, ...]],
    limit: Limit,
    *,
    pixels_of: Callable[[_Item], int] = lambda _: 0,
) -> Iterator[list[_Item]]:
    """Yield consecutive items of equal shape together, each batch as soon as it is full.

    A batch is full with the items of `limit`, or when its pixels exceed those of `limit`.
    """
    batch: list[_Item] = []
    for item in items:
        if batch and shape_of(item) != shape_of(batch[0]):
            yield batch
            batch = []
        batch.append(item)
        del item  # not kept while waiting for the next, so that a large image is freed early
        if limit.exceeded([0, *map(pixels_of, batch)]):
            yield batch
            batch = []
    if batch:
        yield batch


class OrderedWork:
    """Context that runs calls one after another in a background thread; only a few may wait.

    Leaving the context waits for all calls. The exception of a call is raised by a later `submit`
    or on leaving, unless the context is left with another exception; the calls after it run all the
    same.

    Args:
        limit: Calls that may be unfinished after `submit`, which blocks while there are more.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._thread = ThreadPoolExecutor(1)
        self._unfinished: deque[tuple[int, Future[object]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._thread:
            while self._unfinished and error is None:
                self._unfinished.popleft()[1].result()

    def submit(self, call: Callable[[], object], pixels: int = 0) -> None:
        """Run `call` after all calls before it; `pixels` counts towards the limit."""
        self._unfinished.append((pixels, self._thread.submit(call)))
        while self._limit.exceeded([size for size, _ in self._unfinished]):
            self._unfinished.popleft()[1].result()
