"""Write the checkpoints of a run."""

from pathlib import Path

from udaseg.data.labels.classes import classes_to_dict
from udaseg.distributed import on_rank_zero, world_size
from udaseg.errors import DataChanged, DivergedError
from udaseg.recipe.load import to_dict
from udaseg.runs.best import warm_up_folder
from udaseg.runs.checkpoint import save_checkpoint
from udaseg.training.callbacks.callback import Callback, TrainingState
from udaseg.training.memory import OutOfMemory
from udaseg.training.snapshot import state_is_finite
from udaseg.training.stage_data import stage_checkpoint_folder


class Checkpoints(Callback):
    """Saves the state every `machine.checkpoint_every` steps and at the end of the steps.

    That at the end of a warm-up is also kept for ever, in a folder of its own.
    The end may be a signal, or an error after which the state is intact: memory ran out, or a file
    of the data changed.
    """

    def __init__(self) -> None:
        self._saved_step = self._first_step = -1

    def begin(self, state: TrainingState) -> None:
        """Forget what an earlier stage saved."""
        self._saved_step, self._first_step = -1, state.step

    def on_rewind(self, state: TrainingState) -> None:
        """Forget what was saved after the restored step."""
        self._saved_step = min(self._saved_step, state.step)

    def on_step(self, state: TrainingState) -> None:
        """Save the state if it is due."""
        if state.step == state.warm_up_end:
            # before the other, so that a run that resumes after the warm-up has it
            _save(state, warm_up_folder(state.context.folder))
        interval = state.recipe.machine.checkpoint_every
        if interval and state.step % interval == 0:
            self._save(state)

    def end(self, state: TrainingState, error: BaseException | None) -> None:
        """Save the last state, unless saved before."""
        # with several ranks the others are in the middle of a step when one fails
        is_between_steps = isinstance(error, OutOfMemory | DataChanged) and world_size() == 1
        is_intact = error is None or (is_between_steps and state.step > self._first_step)
        if is_intact and state.step != self._saved_step:
            if error is not None:
                _check_finite(state)
            self._save(state)

    def _save(self, state: TrainingState) -> None:
        write_checkpoint(state)
        self._saved_step = state.step


def _check_finite(state: TrainingState) -> None:
    """Raise a DivergedError if the state, which the guard has not checked, is not finite."""
    if not state_is_finite(state.setup.objective, state.setup.optimizer):
        raise DivergedError(
            f"step {state.step}: weights, statistics or the optimiser's moments are not finite, so "
            "nothing was saved; the last checkpoint is unchanged. Lower optimizer.lr, or set "
            "optimizer.clip_norm"
        )


def write_checkpoint(state: TrainingState) -> None:
    """Save the state after `state.step` steps, which is finite, and tell the callbacks."""
    folder = state.context.folder
    if state.step == state.stage.end and state.stage.name is not None:
        # the next stage starts from this checkpoint, so it is kept and written first
        _save(state, stage_checkpoint_folder(folder, state.stage))
    state.announce_checkpoint(_save(state, folder / "checkpoints"))


def _save(state: TrainingState, folder: Path) -> Path:
    setup = state.setup

    def save() -> Path:
        state.context.refuse_lost_folder()
        return save_checkpoint(
            folder,
            step=state.step,
            objective=setup.objective,
            optimizer=setup.optimizer,
            recipe=to_dict(state.recipe),
            classes=classes_to_dict(state.context.data.classes),
            files={**setup.batches.digests(), **state.digests},
            keep=state.recipe.machine.keep_checkpoints,
        )

    return on_rank_zero(save)
