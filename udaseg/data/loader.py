"""Batches in order, from loader processes that are watched: none dies or hangs unnamed."""

import logging
from collections.abc import Iterator

from udaseg.data.batch import Batch, TrainingBatches
from udaseg.data.crew import Crew, Failed, Lost, outcome
from udaseg.errors import DataError

log = logging.getLogger(__name__)

_AHEAD = 4
"""Batches that each process makes ahead."""


class _Trace(Exception):
    """The traceback of an error, as it was in the process that loads."""


def batches_from(
    dataset: TrainingBatches, first: int, *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to the end, decoded in `workers` processes.

    When a process dies, or gives no batch for `dataset.worker_timeout` seconds, loading goes on
    where it was, for a batch is a function of its step. The steps that were in work then are made
    one at a time by one process, so that a second fault has a step and files.

    Raises:
        DataError: A file cannot be used, or a batch cannot be made; names the files.
        EnvironmentFault: There is no shared memory for the processes.
    """
    _say_caches(dataset)
    step, careful_until, told = first, first, set[str]()
    while step < len(dataset):
        careful = step < careful_until
        steps = range(step, min(careful_until, len(dataset)) if careful else len(dataset))
        crew, ahead = (1, 1) if careful else (workers, _AHEAD)
        try:
            for batch in _made(dataset, steps, crew, ahead, pin):
                for reason in batch.skipped:
                    if reason not in told:
                        told.add(reason)
                        log.warning("%s; another image takes its place", reason)
                yield batch
                step = batch.step + 1
        except Lost as lost:
            if careful:
                raise DataError(f"{lost}, for the second time; {_batch(dataset, step)}") from lost
            careful_until = step + _AHEAD * workers
            log.warning(
                "%s; a new process makes the batches of the steps %d to %d, one at a time",
                *(lost, step + 1, min(careful_until, len(dataset))),
            )


def _made(
    dataset: TrainingBatches, steps: range, workers: int, ahead: int, pin: bool
) -> Iterator[Batch]:
    if workers == 0:
        for step in steps:
            batch = _usable(outcome(dataset, step), dataset, step)
            yield batch.pin_memory() if pin else batch
        return
    crew = Crew(dataset, steps, workers, ahead, pin)
    try:
        for step in steps:
            yield _usable(crew.batch(step), dataset, step)
    finally:
        crew.end()


def _usable(made: Batch | Failed, dataset: TrainingBatches, step: int) -> Batch:
    """Return a batch, or raise why there is none."""
    if isinstance(made, Batch):
        return made
    where = _Trace(made.trace)
    if made.kind == MemoryError.__name__:
        raise MemoryError(made.message) from where
    if made.kind == DataError.__name__:
        raise DataError(made.message) from where
    what = f"loading failed with {made.kind}: {made.message}"
    raise DataError(f"{what}; {_batch(dataset, step)}") from where


def _batch(dataset: TrainingBatches, step: int) -> str:
    return "the batch of step {}:\n  {}".format(step + 1, "\n  ".join(dataset.names(step)))


def _say_caches(dataset: TrainingBatches) -> None:
    for word, crops in (("source", dataset.source), ("target", dataset.target)):
        if crops is not None and crops.cache is not None:
            height, width = crops.cache.size
            log.info("%s images of %dx%d come from %s", word, width, height, crops.cache.folder)
