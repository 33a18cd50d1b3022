"""Callbacks: their base class, what they see, and who calls them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from udaseg.data.files.images import Pixels
from udaseg.distributed import rank, without_peers
from udaseg.methods.objectives.objective import LossReport
from udaseg.recipe.methods import warm_up_steps
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import Stage
from udaseg.runs.status import RunStatus
from udaseg.training.guards import DroppedStep
from udaseg.training.setup import RunContext, TrainingSetup, images_per_step

EARLY_STEPS = (1, 2, 5, 10, 20)
"""Steps with a line of metrics besides those of `machine.log_every`, to see that a run works."""


class Callback:
    """Something that happens beside training: it watches, shows, writes or saves.

    Every method does nothing by default. A callback changes no weight, no mode and no random
    state, and keeps neither the state nor its setup: a later stage frees them.

    Attributes:
        ranks: `all` if every process calls it, so that it may use collective operations. `zero` if
            only the first process does while the others go on; it then acts as a single process.
    """

    ranks: ClassVar[Literal["all", "zero"]] = "all"

    def begin(self, state: "TrainingState") -> None:
        """A stage starts, or resumes, after `state.step` steps of the run."""

    def on_step(self, state: "TrainingState") -> None:
        """A step was done or dropped: `state.step` counts it, `state.report` has its losses."""

    def on_event(self, state: "TrainingState", event: Mapping[str, object]) -> None:
        """A line of metrics after `state.step` steps; loggers write it."""

    def on_preview(self, state: "TrainingState", picture: Pixels) -> None:
        """A preview was drawn after `state.step` steps."""

    def on_checkpoint(self, state: "TrainingState", path: Path) -> None:
        """A checkpoint of `state.step` steps was written."""

    def on_rewind(self, state: "TrainingState") -> None:
        """The state after `state.step` steps was restored; the steps after it are run again."""

    def end(self, state: "TrainingState", error: BaseException | None) -> None:
        """The steps of the stage are over, or ended early by a signal or an error."""


@dataclass
class TrainingState:
    """What callbacks see of a stage, and how they reach each other.

    Attributes:
        status: Status of the run; incidents are counted there.
        digests: Digests of files that were made for this stage; stored in each checkpoint.
        step: Steps of the run that are done.
        report: Losses of the step, inside `on_step`.
        gradient_norm: Gradient norm of the step, before clipping.
        dropped: The step, if it was dropped, inside `on_step`.
        event: What a step has to say; `Metrics` turns it into a line of metrics.
        wants_line: Whether the line of this step has the losses: at `machine.log_every`, at
            `EARLY_STEPS` and the last step, or because a callback set it.
    """

    context: RunContext
    setup: TrainingSetup
    status: RunStatus
    callbacks: Sequence[Callback] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    report: LossReport | None = None
    gradient_norm: float = 0.0
    dropped: DroppedStep | None = None
    event: dict[str, object] = field(default_factory=dict)
    wants_line: bool = False

    @property
    def images_per_step(self) -> int:
        """Images of a step, over all processes."""
        return images_per_step(self.setup.batches) * self.setup.batches.options.world_size

    @property
    def recipe(self) -> Recipe:
        """Recipe of the run."""
        return self.setup.recipe

    @property
    def stage(self) -> Stage:
        """The stage that is trained."""
        return self.setup.stage

    @property
    def warm_up_end(self) -> int:
        """Steps of the warm-up, from the start of the run; 0 without one."""
        return warm_up_steps(self.stage.objective, self.recipe.steps)

    def write_event(self, event: Mapping[str, object]) -> None:
        """Give the loggers a line of metrics."""
        stage = {} if self.stage.name is None else {"stage": self.stage.name}
        line = {**stage, **event}
        self.call_each(lambda callback: callback.on_event(self, line))

    def add_preview(self, picture: Pixels) -> None:
        """Give the loggers a preview."""
        self.call_each(lambda callback: callback.on_preview(self, picture))

    def announce_checkpoint(self, path: Path) -> None:
        """Tell all callbacks that a checkpoint was written."""
        self.call_each(lambda callback: callback.on_checkpoint(self, path))

    def call_each(self, act: Callable[[Callback], None]) -> None:
        """Call `act` for every callback in order, on the ranks that it asks for."""
        for callback in self.callbacks:
            call_on_its_ranks(callback, act)


def call_on_its_ranks(callback: Callback, act: Callable[[Callback], None]) -> None:
    """Call `act` for a callback, on the ranks that it asks for."""
    if callback.ranks == "all":
        act(callback)
    elif rank() == 0:
        # a teacher with synchronised batch norm would wait for the images of the other ranks
        with without_peers():
            act(callback)


class Dispatcher:
    """Calls the callbacks of a stage; the training loop and its guard know only this."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    @contextlib.contextmanager
    def running(self, first: int) -> Iterator[None]:
        """Begin after `first` steps, and end with the body, whatever ends it.

        Callbacks end in reverse order, so that the last checkpoint still reaches the loggers.
        """
        state = self.state
        state.step = first
        try:
            state.call_each(lambda callback: callback.begin(state))
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def on_step(self, done: int, report: LossReport, gradient_norm: float) -> None:
        """Tell the callbacks that a step was done or dropped; `done` counts it."""
        state, recipe = self.state, self.state.recipe
        state.step, state.report, state.gradient_norm, state.event = done, report, gradient_norm, {}
        is_due = done % recipe.machine.log_every == 0 or done in (*EARLY_STEPS, recipe.steps)
        state.wants_line = is_due or state.dropped is not None
        try:
            state.call_each(lambda callback: callback.on_step(state))
        finally:
            # otherwise the features of this step live through the next forward pass
            state.report = state.dropped = None

    def on_drop(self, dropped: DroppedStep) -> None:
        """Note that the step is dropped; `on_step` follows."""
        self.state.dropped = dropped
        self.state.status.write("running", step=dropped.step)

    def on_rewind(self, done: int) -> None:
        """Tell the callbacks that the state after `done` steps was restored."""
        state = self.state
        state.step, state.dropped = done, None
        state.call_each(lambda callback: callback.on_rewind(state))
        state.status.write("running", step=done)

    def _end(self, error: BaseException | None) -> None:
        state = self.state
        with contextlib.ExitStack() as stack:
            for callback in state.callbacks:
                stack.callback(call_on_its_ranks, callback, lambda each: each.end(state, error))
