"""Train all stages of a run, to the end or until a signal, and record the status."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from udaseg.data.labels.classes import classes_to_dict
from udaseg.data.loading.batches import CONTENT
from udaseg.distributed import differences_between_ranks, rank, world_size
from udaseg.errors import (
    DataChanged,
    DataError,
    DivergedError,
    EnvironmentFault,
    Interrupted,
    UdasegError,
)
from udaseg.failures import report_once
from udaseg.methods.objectives.objective import LossReport
from udaseg.recipe.stages import Stage, stage_at, stages_of
from udaseg.runs.checkpoint import Checkpoint, newest_checkpoint
from udaseg.runs.scores import Scores
from udaseg.runs.status import RunStatus
from udaseg.signals import StopSignal
from udaseg.training import memory
from udaseg.training.callbacks.build import build_callbacks
from udaseg.training.callbacks.callback import Dispatcher, TrainingState
from udaseg.training.callbacks.checkpoints import write_checkpoint
from udaseg.training.callbacks.scores import write_final_scores
from udaseg.training.callbacks.worth import write_worth_of_run
from udaseg.training.guards import Guard
from udaseg.training.loop import run_steps, try_step
from udaseg.training.resume import restore
from udaseg.training.setup import RunContext, TrainingSetup
from udaseg.training.stage_data import adapt_batch_norm, make_anchors, make_labels, open_stage

log = logging.getLogger(__name__)


class Runner:
    """Trains the stages of a run in turn.

    Only the runner and the state that it gives to callbacks hold the setup of a stage. Both are
    freed before the next stage builds its own, so two networks with optimizer state never live at
    the same time.

    Attributes:
        context: What all stages share; its recipe may get more micro-batches.
        setup: Setup of the current stage, at first of the first; None between two stages.
    """

    def __init__(self, context: RunContext, setup: TrainingSetup) -> None:
        self.context = context
        self.setup: TrainingSetup | None = setup
        self._done = 0 if context.checkpoint is None else context.checkpoint.step
        self._state: TrainingState | None = None
        self._callbacks = build_callbacks(context)
        self._status = RunStatus(context.folder / "status.json" if rank() == 0 else None)
        self._stop = StopSignal()

    def run(self) -> Scores | None:
        """Train all stages and score at the end; the outcome is written to `status.json`."""
        # lasts until status.json is final: torchrun sends SIGTERM as soon as another process exits
        with self._stop:
            self._status.write("running", step=self._done)
            started = time.monotonic()
            try:
                with report_once(), self._in_its_folder():
                    miou, scores = self._train_and_score()
            except BaseException as error:
                self._record(error)
                raise
            seconds = round(time.monotonic() - started, 1)
            self._status.write("done", step=self._done, seconds=seconds, miou=miou)
        return scores

    @contextlib.contextmanager
    def _in_its_folder(self) -> Iterator[None]:
        """Say that the run folder was moved or deleted, rather than what failed because of it."""
        try:
            yield
        except Exception:
            self.context.refuse_lost_folder()
            raise

    def _record(self, error: BaseException) -> None:
        """Record why the run ends; add advice if it is out of memory."""
        if not self.context.folder_is_here():
            return
        if isinstance(error, Interrupted):
            self._status.write("interrupted", step=self._done, signal=error.exit_code - 128)
        elif isinstance(error, UdasegError):
            self._status.write("failed", code=error.exit_code, reason=str(error))
        elif not memory.is_out_of_memory(error):
            self._status.write("failed", code=1, reason=f"{type(error).__name__}: {error}")
        else:
            reason = str(error).partition("\n")[0] or "out of memory"
            if self.setup is not None:
                fit_given = self.context.fit_memory
                reason = memory.out_of_memory_advice(self.setup, reason, fit_given=fit_given)
            self._status.write("failed", code=EnvironmentFault.exit_code, reason=reason)
            raise EnvironmentFault(reason) from error

    def _train_and_score(self) -> tuple[float, Scores] | tuple[None, None]:
        try:
            self._train_stages()
            outcome = self._score()
            self._compare()
            return outcome
        except DataChanged as error:
            raise DataChanged(f"{error}; {self._advice_on_changed_data()}") from error

    def _advice_on_changed_data(self) -> str:
        folder = self.context.folder
        last = newest_checkpoint(folder / "checkpoints")
        if last is None:
            return (
                "the run ended before a step was saved. Restore the file or prepare the data "
                f"again, then continue with --resume {folder}"
            )
        return (
            f"the run ended, and step {last.step} is saved. Restore the file and continue with "
            f"--resume {folder}, or prepare the data again and start a new run, with --init "
            f"{folder} to start from its weights"
        )

    def _train_stages(self) -> None:
        """Train the remaining stages; each starts from the student of the previous one."""
        recipe, checkpoint = self.context.recipe, self.context.checkpoint
        if checkpoint is not None:
            assert self.setup is not None
            _refuse_changed_files(checkpoint, self.setup.batches.digests())
        for stage in stages_of(recipe)[stage_at(recipe, self._done).index :]:
            digests = self._open_stage(stage)
            self._refuse_different_files(digests)
            if checkpoint is not None and (checkpoint.step > stage.begin or stage.index == 0):
                self._restore(checkpoint, digests)
            self._train_stage(digests)
            self._done = stage.end
        self._adapt_batch_norm()

    def _open_stage(self, stage: Stage) -> dict[str, str]:
        """Build the setup of a stage, if it is not the first; return the digests of its files."""
        if stage.index == 0:
            assert self.setup is not None
            if self.context.checkpoint is None:
                make_anchors(self.context, self.setup, self._stop)
            return make_labels(self.context, self.setup, self._stop)
        # free the network, gradients and moments of the previous stage
        self.setup = self._state = None
        log.info(
            "stage %d: %s, steps %d to %d", stage.index + 1, stage.name, stage.begin, stage.end
        )
        # a checkpoint at a stage's first step belongs to the previous stage
        is_new = self._done <= stage.begin
        self.setup, digests = open_stage(self.context, stage, is_new=is_new, stop=self._stop)
        return digests

    def _refuse_different_files(self, digests: dict[str, str]) -> None:
        """Refuse a stage whose processes see other files, by name or by content."""
        assert self.setup is not None
        short = {
            f"the content of {name.removesuffix(CONTENT)}"
            if name.endswith(CONTENT)
            else f"the list of {name}": digest[:12]
            for name, digest in {**self.setup.batches.digests(), **digests}.items()
        }
        if differences := differences_between_ranks(short):
            raise EnvironmentFault(
                f"the processes of the run see different files: {differences} (start of the "
                "SHA-256). Prepare the same data on all hosts"
            )

    def _restore(self, checkpoint: Checkpoint, digests: dict[str, str]) -> None:
        """Restore a checkpoint into the stage that it belongs to, if the data are the same."""
        assert self.setup is not None
        classes = self.context.data.classes
        if checkpoint.classes != classes_to_dict(classes):
            raise DataError(
                f"{checkpoint.path}: was trained on the classes {checkpoint.classes['names']}, but "
                f"the source has {list(classes.names)}; start a new run with --init instead"
            )
        _refuse_changed_files(checkpoint, {**self.setup.batches.digests(), **digests})
        restore(checkpoint, self.setup.objective, self.setup.optimizer)
        log.info("resumed %s at step %d", self.context.folder, checkpoint.step)

    def _train_stage(self, digests: dict[str, str]) -> None:
        """Train the open stage; in more parts if the first step does not fit."""
        while True:
            assert self.setup is not None
            state = TrainingState(
                context=self.context,
                setup=self.setup,
                status=self._status,
                callbacks=self._callbacks,
                digests=digests,
                step=self._done,
            )
            self._state = state
            try:
                if self.context.fit_memory and self._done < state.warm_up_end < state.stage.end:
                    # the steps of a warm-up need less memory than those after it
                    try_step(self.setup, state.warm_up_end)
                if self._done < self.setup.stage.end:
                    self._train_steps(state)
                return
            except memory.FirstStepOutOfMemory as error:
                message = str(error)
            # outside the except clause, so that the tensors in the error's frames are freed first
            del state
            self._state = None
            context = self.context
            self.setup = memory.split_further(
                self.setup, context.folder, message, fit_given=context.fit_memory
            )
            self.context = replace(self.context, recipe=self.setup.recipe)

    def _train_steps(self, state: TrainingState) -> None:
        callbacks, stop, first = Dispatcher(state), self._stop, self._done
        guard = Guard(
            state.setup,
            counts=self._status.incident_counts,
            on_drop=callbacks.on_drop,
            on_rollback=callbacks.on_rewind,
        )

        def on_step(done: int, report: LossReport) -> None:
            self.context.refuse_lost_folder()
            callbacks.on_step(done, report, guard.gradient_norm)

        try:
            with callbacks.running(first):
                done = run_steps(state.setup, first=first, on_step=on_step, stop=stop, guard=guard)
        except DivergedError as error:
            raise self._with_last_checkpoint(error) from error
        self._done = done
        if done < state.recipe.steps and stop.stop_requested():
            assert stop.number is not None
            message = f"stopped at step {done} and saved; continue with --resume "
            raise Interrupted(f"{message}{self.context.folder}", stop.number)

    def _with_last_checkpoint(self, error: DivergedError) -> DivergedError:
        """Return the error with the last checkpoint added."""
        folder = self.context.folder
        last = newest_checkpoint(folder / "checkpoints")
        if last is None:
            return DivergedError(f"{error}\nno checkpoint was written yet")
        text = f"{error}\nthe last good checkpoint is {last.path}, step {last.step}"
        if isinstance(error, memory.OutOfMemory) and world_size() == 1:
            text += f"; continue with --resume {folder} --fit, or on a machine with more memory"
        return DivergedError(text)

    def _adapt_batch_norm(self) -> None:
        """Give the trained networks the statistics of the target, if the recipe asks for it."""
        context, state = self.context, self._state
        assert state is not None
        if context.recipe.method.target_statistics == 0 or context.data.target is None:
            return
        adapt_batch_norm(context, state.setup, context.data.target, self._stop)
        write_checkpoint(state)

    def _score(self) -> tuple[float, Scores] | tuple[None, None]:
        """Score the trained student, if the run has validation data."""
        context = self.context
        if context.data.validation is None:
            return None, None
        assert self._state is not None
        message = f"trained, not scored; continue with --resume {context.folder}"
        with self._stop.interruptible(message):
            return write_final_scores(self._state)

    def _compare(self) -> None:
        """Compare the trained student with that at the end of the warm-up, if there was one."""
        assert self._state is not None
        with self._stop.interruptible(
            "trained, not compared with the network before the adaptation; continue with --resume "
            f"{self.context.folder}"
        ):
            write_worth_of_run(self._state)


def _refuse_changed_files(checkpoint: Checkpoint, digests: Mapping[str, str]) -> None:
    """Refuse files that are not those that a checkpoint was trained on, as far as it has digests.

    A checkpoint of an earlier version has none of the content.
    """
    stored = checkpoint.files
    changed = [name for name in digests if stored.get(name, digests[name]) != digests[name]]
    if changed:
        names = dict.fromkeys(name.removesuffix(CONTENT) for name in changed)
        raise DataError(
            f"{checkpoint.path}: the files of {' and '.join(names)} have changed, so the run "
            "cannot be resumed exactly; restore them, or start a new run with --init"
        )
