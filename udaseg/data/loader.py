"""Training batches in step order, from processes that are monitored for crashes and hangs."""

import logging
from collections.abc import Iterator

from udaseg.data.batch import Batch, TrainingBatches
from udaseg.data.crew import Crew, Failed, Lost, outcome
from udaseg.errors import DataError

log = logging.getLogger(__name__)

_AHEAD = 4
"""Batches that each process makes in advance."""


class _Trace(Exception):
    """The traceback of an error in the process that loads."""


def batches_from(
    dataset: TrainingBatches, first: int, *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to the end, decoded in `workers` processes.

    If a process dies, or returns no batch for `dataset.worker_timeout` seconds, loading continues
    where it stopped, because a batch is a function of its step. One process then makes the batches
    that were in progress, one at a time, so that a second fault can be traced to a step and files.

    Raises:
        DataError: A file cannot be used, or a batch cannot be made; the message names the files.
        EnvironmentFault: The processes have no shared memory.
    """
    _say_caches(dataset)
    step, single_until, reported = first, first, set[str]()
    while step < len(dataset):
        one_at_a_time = step < single_until
        steps = range(step, min(single_until, len(dataset)) if one_at_a_time else len(dataset))
        processes, ahead = (1, 1) if one_at_a_time else (workers, _AHEAD)
        try:
            for batch in _made(dataset, steps, processes, ahead, pin):
                for reason in batch.skipped:
                    if reason not in reported:
                        reported.add(reason)
                        log.warning("%s; replaced by another image", reason)
                yield batch
                step = batch.step + 1
        except Lost as error:
            if one_at_a_time:
                raise DataError(f"{error}, for the second time; {_batch(dataset, step)}") from error
            single_until = step + _AHEAD * workers
            log.warning(
                "%s; a new process makes the batches of steps %d to %d, one at a time",
                error,
                step + 1,
                min(single_until, len(dataset)),
            )


def _made(
    dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
) -> Iterator[Batch]:
    if workers == 0:
        for step in steps:
            batch = _usable(outcome(dataset, step), dataset, step)
            yield batch.pin_memory() if pin else batch
        return
    pool = Crew(dataset, steps, workers, ahead, pin)
    try:
        for step in steps:
            yield _usable(pool.batch(step), dataset, step)
    finally:
        pool.end()


def _usable(result: Batch | Failed, dataset: TrainingBatches, step: int) -> Batch:
    """Return the batch, or raise the error of the process that could not make it."""
    if isinstance(result, Batch):
        return result
    trace = _Trace(result.trace)
    if result.kind == MemoryError.__name__:
        raise MemoryError(result.message) from trace
    if result.kind == DataError.__name__:
        raise DataError(result.message) from trace
    message = f"loading failed with {result.kind}: {result.message}"
    raise DataError(f"{message}; {_batch(dataset, step)}") from trace


def _batch(dataset: TrainingBatches, step: int) -> str:
    return "the batch of step {}:\n  {}".format(step + 1, "\n  ".join(dataset.names(step)))


def _say_caches(dataset: TrainingBatches) -> None:
    for domain, crops in (("source", dataset.source), ("target", dataset.target)):
        if crops is not None and crops.cache is not None:
            height, width = crops.cache.size
            log.info(
                "%s images of %dx%d are read from %s", domain, width, height, crops.cache.folder
            )
