"""Training all legs of a run to the end, or to a signal, with word of how it goes."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from udaseg import build
from udaseg.commands.ending import take_target_statistics
from udaseg.commands.keeping import Keeper
from udaseg.commands.recording import Recorder
from udaseg.commands.room import advice, in_smaller_parts
from udaseg.commands.stages import open_leg
from udaseg.data import ClassSpace, PreparedDataset
from udaseg.distributed import one_voice, rank
from udaseg.engine import (
    Checkpoint,
    DoesNotFit,
    Fit,
    StopSignal,
    fit,
    is_out_of_memory,
    restore,
)
from udaseg.errors import (
    DataError,
    DivergedError,
    EnvironmentFault,
    Interrupted,
    UdasegError,
)
from udaseg.recipe import Recipe, leg_at, legs
from udaseg.reporting import RunStatus, TrainingProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run needs while it trains."""

    recipe: Recipe
    source: PreparedDataset
    target: PreparedDataset | None
    validation: PreparedDataset | None
    folder: Path
    checkpoint: Checkpoint | None
    fit_memory: bool
    keeper: Keeper | None = None

    @property
    def done(self) -> int:
        """Steps that the checkpoint has behind it."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def classes(self) -> ClassSpace:
        """Classes of the source."""
        assert self.source.classes is not None
        return self.source.classes


def train_to_the_end(plan: Plan, current: list[Fit]) -> None:
    """Train all legs, score at the end, and leave word of how it went in `status.json`.

    Args:
        plan: Of the run.
        current: The first leg, built; others take its place when their turn comes.

    Raises:
        Interrupted: A signal came; the last step is saved.
    """
    # to the last word of status.json: torchrun sends SIGTERM as soon as another process is gone
    with StopSignal() as stop:
        _to_the_end(plan, current, stop)


def _to_the_end(plan: Plan, current: list[Fit], stop: StopSignal) -> None:
    recipe, folder = plan.recipe, plan.folder
    status = RunStatus(folder / "status.json" if rank() == 0 else None)
    status.running(step=plan.done)
    started = time.monotonic()
    miou: float | None = None
    try:
        with one_voice():
            recorder = _all_legs(plan, current, status, stop)
            if plan.validation is not None:
                with (
                    _told_when_interrupted(status, recipe.steps),
                    stop.breaking_off(f"trained, not scored; go on with --resume {folder}"),
                ):
                    miou = recorder.scored(show_it=True).mean_iou()
    except Interrupted:
        raise  # told where it came, with the step
    except UdasegError as error:
        status.failed(code=error.exit_code, reason=str(error))
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            reason = str(error).partition("\n")[0] or "out of memory"
            if current:
                reason = advice(recipe, current[0], reason, fit_given=plan.fit_memory)
            status.failed(code=EnvironmentFault.exit_code, reason=reason)
            raise EnvironmentFault(reason) from error
        # whatever it was, the folder must not say for ever that the run goes on
        status.failed(code=1, reason=f"{type(error).__name__}: {error}")
        raise
    status.done(step=recipe.steps, seconds=time.monotonic() - started, miou=miou)


def _all_legs(plan: Plan, current: list[Fit], status: RunStatus, stop: StopSignal) -> Recorder:
    """Train the legs that are left, each from the student of the one before."""
    recipe, folder, done = plan.recipe, plan.folder, plan.done
    recorder: Recorder | None = None
    for leg in legs(recipe)[leg_at(recipe, done).number :]:
        # a checkpoint of the very step that a stage begins with is of the stage before
        fresh = done <= leg.begin
        extra: dict[str, str] = {}
        if leg.number > 0:
            log.info("stage %d: %s, steps %d to %d", leg.number + 1, leg.name, leg.begin, leg.end)
            # the network, gradients and moments of the stage before are freed
            recorder = None
            current.clear()
            with _told_when_interrupted(status, done):
                opened, extra = open_leg(
                    *(recipe, leg, plan.source, plan.target, folder), fresh=fresh, stop=stop
                )
                current.append(opened)
                del opened
        if plan.checkpoint is not None and (plan.done > leg.begin or leg.number == 0):
            _continue(plan, current[0], extra)
        first = max(done, leg.begin)
        while True:
            recorder = Recorder(
                *(recipe, leg, current[0], plan.classes, plan.validation, folder, extra, status),
                plan.keeper,
            )
            try:
                if first < leg.end:
                    _steps(recorder, first, status, stop)
                break
            except DoesNotFit as error:
                told = str(error)
            # outside the except clause: what the error's frames hold is to be freed
            recorder = None
            recipe, current[0] = in_smaller_parts(
                recipe, current[0], folder, told, wanted=plan.fit_memory
            )
        done = leg.end
    assert recorder is not None
    if recipe.method.target_statistics > 0 and plan.target is not None:
        with _told_when_interrupted(status, done):
            take_target_statistics(recipe, current[0], plan.target, stop, folder)
        recorder.checkpoint(done, again=True)
    return recorder


@contextlib.contextmanager
def _told_when_interrupted(status: RunStatus, done: int) -> Iterator[None]:
    """Note in `status.json` that a signal ended what comes after `done` steps."""
    try:
        yield
    except Interrupted as interrupted:
        status.interrupted(step=done, signal_number=interrupted.exit_code - 128)
        raise


def _steps(recorder: Recorder, first: int, status: RunStatus, stop: StopSignal) -> None:
    recipe, folder = recorder.recipe, recorder.folder
    progress = TrainingProgress(steps=recipe.steps, first=first, every=recipe.machine.log_every)
    with recorder.metrics, progress:
        recorder.begin_from(first)
        recorder.progress = progress
        try:
            made, guard = recorder.made, recorder.guard
            done = fit(made, first=first, on_step=recorder.on_step, stop=stop, guard=guard)
            recorder.checkpoint(done)
        except DivergedError as error:
            raise recorder.last_words(error) from error
    if done < recipe.steps and stop.asked():
        assert stop.number is not None
        status.interrupted(step=done, signal_number=stop.number)
        raise Interrupted(
            f"stopped at step {done} and saved; go on with --resume {folder}", stop.number
        )


def _continue(plan: Plan, made: Fit, extra: Mapping[str, str]) -> None:
    """Restore the checkpoint into the leg that it is of."""
    assert plan.checkpoint is not None
    _refuse_other_data(plan.checkpoint, made, plan.classes, extra)
    restore(plan.checkpoint, made.objective, made.optimizer)
    log.info("resumed %s at step %d", plan.folder, plan.done)


def _refuse_other_data(
    checkpoint: Checkpoint, made: Fit, classes: ClassSpace, extra: Mapping[str, str]
) -> None:
    """Refuse to continue with other classes or other files; each batch hangs on both."""
    if checkpoint.classes != build.class_document(classes):
        raise DataError(
            f"{checkpoint.path}: was trained on the classes {checkpoint.classes['names']}, but the "
            f"source has {list(classes.names)}; start a new run with --init instead"
        )
    now = {**made.batches.digests(), **extra}
    other = [domain for domain in now if checkpoint.files.get(domain) != now[domain]]
    if other:
        raise DataError(
            f"{checkpoint.path}: the files of {' and '.join(other)} are others than before, so the "
            "run could not go on exactly; restore them, or start a new run with --init"
        )
