"""Train all stages of a run, to the end or until a signal, and record the status."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from udaseg.data.labels.classes import ClassSpace, classes_to_dict
from udaseg.display.progress import TrainingProgress
from udaseg.distributed import rank
from udaseg.errors import DataError, DivergedError, EnvironmentFault, Interrupted, UdasegError
from udaseg.failures import report_once
from udaseg.recipe.stages import Stage, stage_at, stages_of
from udaseg.runs.checkpoint import Checkpoint
from udaseg.runs.status import RunStatus
from udaseg.signals import StopSignal
from udaseg.training.callbacks.recorder import Recorder
from udaseg.training.context import RunContext
from udaseg.training.loop import run_steps
from udaseg.training.memory import (
    FirstStepOutOfMemory,
    is_out_of_memory,
    out_of_memory_advice,
    split_further,
)
from udaseg.training.resume import restore
from udaseg.training.setup import TrainingSetup
from udaseg.training.stage_data import adapt_batch_norm, open_stage

log = logging.getLogger(__name__)


def train_all_stages(context: RunContext, setups: list[TrainingSetup]) -> None:
    """Train all stages, score at the end, and write the outcome to `status.json`.

    Args:
        context: Context of the run.
        setups: Holds the setup of the first stage; later stages replace it.

    Raises:
        Interrupted: A signal came; the last step is saved.
    """
    # lasts until status.json is final: torchrun sends SIGTERM as soon as another process exits
    with StopSignal() as stop:
        _train_and_score(context, setups, stop)


def _train_and_score(context: RunContext, setups: list[TrainingSetup], stop: StopSignal) -> None:
    recipe, folder = context.recipe, context.folder
    status = RunStatus(folder / "status.json" if rank() == 0 else None)
    status.running(step=context.steps_done)
    started = time.monotonic()
    miou: float | None = None
    try:
        with report_once():
            recorder = _train_stages(context, setups, status, stop)
            if context.data.validation is not None:
                with (
                    _record_interruption(status, recipe.steps),
                    stop.interruptible(f"trained, not scored; continue with --resume {folder}"),
                ):
                    miou = recorder.score_validation(show_table=True).mean_iou()
    except Interrupted:
        raise  # already recorded where it was raised, with the step
    except UdasegError as error:
        status.failed(code=error.exit_code, reason=str(error))
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            reason = str(error).partition("\n")[0] or "out of memory"
            if setups:
                reason = out_of_memory_advice(setups[0], reason, fit_given=context.fit_memory)
            status.failed(code=EnvironmentFault.exit_code, reason=reason)
            raise EnvironmentFault(reason) from error
        # after any error, the status must not remain "running"
        status.failed(code=1, reason=f"{type(error).__name__}: {error}")
        raise
    status.done(step=recipe.steps, seconds=time.monotonic() - started, miou=miou)


def _train_stages(
    context: RunContext, setups: list[TrainingSetup], status: RunStatus, stop: StopSignal
) -> Recorder:
    """Train the remaining stages; each starts from the student of the previous one."""
    done = context.steps_done
    recorder: Recorder | None = None
    for stage in stages_of(context.recipe)[stage_at(context.recipe, done).index :]:
        digests: dict[str, str] = {}
        if stage.index > 0:
            # free the network, gradients and moments of the previous stage
            recorder = None
            setups.clear()
            with _record_interruption(status, done):
                digests = _open_later_stage(context, stage, setups, done, stop)
        if context.checkpoint is not None and (
            context.steps_done > stage.begin or stage.index == 0
        ):
            _restore(context, setups[0], digests)
        first = max(done, stage.begin)
        context, recorder = _train_stage(context, stage, setups, digests, first, status, stop)
        done = stage.end
    assert recorder is not None
    if context.recipe.method.target_statistics > 0 and context.data.target is not None:
        with _record_interruption(status, done):
            adapt_batch_norm(context.recipe, setups[0], context.data.target, stop, context.folder)
        recorder.save_checkpoint(done, force=True)
    return recorder


def _open_later_stage(
    context: RunContext, stage: Stage, setups: list[TrainingSetup], done: int, stop: StopSignal
) -> dict[str, str]:
    """Append the setup of a stage after the first, and return the digests of its files."""
    log.info("stage %d: %s, steps %d to %d", stage.index + 1, stage.name, stage.begin, stage.end)
    setup, digests = open_stage(
        context.recipe,
        stage,
        context.data,
        context.folder,
        # a checkpoint at a stage's first step belongs to the previous stage
        is_new=done <= stage.begin,
        stop=stop,
    )
    setups.append(setup)
    return digests


def _train_stage(
    context: RunContext,
    stage: Stage,
    setups: list[TrainingSetup],
    digests: Mapping[str, str],
    first: int,
    status: RunStatus,
    stop: StopSignal,
) -> tuple[RunContext, Recorder]:
    """Train a stage from step `first`; with more micro-batches if the first step does not fit.

    Returns:
        The context, whose recipe has the number of micro-batches, and the recorder of the stage.
    """
    while True:
        recorder = Recorder(context, stage, setups[0], digests, status)
        try:
            if first < stage.end:
                _train_steps(recorder, first, status, stop)
            return context, recorder
        except FirstStepOutOfMemory as error:
            message = str(error)
        # outside the except clause, so that the tensors in the error's frames are freed first
        del recorder
        setups[0] = split_further(setups[0], context.folder, message, fit_given=context.fit_memory)
        context = replace(context, recipe=setups[0].recipe)


@contextlib.contextmanager
def _record_interruption(status: RunStatus, done: int) -> Iterator[None]:
    """Record in `status.json` if a signal interrupts the work that follows step `done`."""
    try:
        yield
    except Interrupted as interrupted:
        status.interrupted(step=done, signal_number=interrupted.exit_code - 128)
        raise


def _train_steps(recorder: Recorder, first: int, status: RunStatus, stop: StopSignal) -> None:
    recipe, folder = recorder.recipe, recorder.folder
    progress = TrainingProgress(
        steps=recipe.steps, first=first, line_interval=recipe.machine.log_every
    )
    with recorder.metrics, progress:
        recorder.rewind_to(first)
        recorder.progress = progress
        try:
            setup, guard = recorder.setup, recorder.guard
            done = run_steps(setup, first=first, on_step=recorder.on_step, stop=stop, guard=guard)
            recorder.save_checkpoint(done)
        except DivergedError as error:
            raise recorder.add_last_checkpoint(error) from error
    if done < recipe.steps and stop.stop_requested():
        assert stop.number is not None
        status.interrupted(step=done, signal_number=stop.number)
        raise Interrupted(
            f"stopped at step {done} and saved; continue with --resume {folder}", stop.number
        )


def _restore(context: RunContext, setup: TrainingSetup, digests: Mapping[str, str]) -> None:
    """Restore the checkpoint into the stage that it belongs to."""
    assert context.checkpoint is not None
    _check_same_data(context.checkpoint, setup, context.data.classes, digests)
    restore(context.checkpoint, setup.objective, setup.optimizer)
    log.info("resumed %s at step %d", context.folder, context.steps_done)


def _check_same_data(
    checkpoint: Checkpoint, setup: TrainingSetup, classes: ClassSpace, digests: Mapping[str, str]
) -> None:
    """Refuse to resume with other classes or other files; the batches depend on both."""
    if checkpoint.classes != classes_to_dict(classes):
        raise DataError(
            f"{checkpoint.path}: was trained on the classes {checkpoint.classes['names']}, but the "
            f"source has {list(classes.names)}; start a new run with --init instead"
        )
    current = {**setup.batches.digests(), **digests}
    changed = [domain for domain in current if checkpoint.files.get(domain) != current[domain]]
    if changed:
        raise DataError(
            f"{checkpoint.path}: the files of {' and '.join(changed)} have changed, so the run "
            "cannot be resumed exactly; restore them, or start a new run with --init"
        )
