"""The progress bar of training."""

import math
from collections.abc import Mapping
from contextlib import ExitStack

from udaseg.display.progress import WorkProgress
from udaseg.training.callbacks.callback import EARLY_STEPS, Callback, TrainingState

_BRIEF = ("total", "confident", "uncertainty")
"""Of the losses, those that a bar shows."""


class Progress(Callback):
    """Shows steps, rate and losses: a bar on a terminal, plain lines in the log when piped."""

    ranks = "zero"

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: WorkProgress | None = None
        self._losses: dict[str, float] | None = None

    def begin(self, state: TrainingState) -> None:
        """Show the bar."""
        recipe = state.recipe
        self._bar = self._open.enter_context(
            WorkProgress(
                "step",
                recipe.steps,
                unit="",
                first=state.step,
                line_interval=recipe.machine.log_every,
                early_lines=EARLY_STEPS,
            )
        )

    def on_event(self, state: TrainingState, event: Mapping[str, object]) -> None:
        """Take the finite losses of a line of metrics."""
        losses = event.get("losses")
        if isinstance(losses, Mapping):
            self._losses = {name: value for name, value in losses.items() if math.isfinite(value)}

    def on_step(self, state: TrainingState) -> None:
        """Show the step, and its losses if it has a line of metrics."""
        assert self._bar is not None
        self._bar.update(
            state.step, values=self._losses, brief=_BRIEF, images_per_item=state.images_per_step
        )
        self._losses = None

    def end(self, state: TrainingState, error: BaseException | None) -> None:
        """Take the bar away."""
        self._open.close()
