"""Guards of the loop: drop steps that are not finite, and roll back a state that is not finite.

A dropped step leaves the state as it was before its forward pass. The loop reads the norm of the
gradient from the device, once a step: `compute_gradients` makes the gradient NaN, on all ranks, if
anything else is not finite. Without the read, every write of a step would have to be masked.

A state that is damaged between two steps (by a bit flip or a faulty kernel) makes all later steps
bad. Instead of dropping them, the last good copy of the state is restored and the steps since then
are repeated. As a run is a function of (recipe, step), it ends as if nothing had happened.
"""

import logging
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from udaseg.distributed import all_gather_object
from udaseg.errors import DivergedError
from udaseg.methods.objectives.objective import LossReport
from udaseg.recipe.methods import warm_up_steps
from udaseg.training.scalars import mean_scalars
from udaseg.training.setup import TrainingSetup
from udaseg.training.snapshot import BufferCopy, Snapshot, state_is_finite

log = logging.getLogger(__name__)
DROPPED_STEPS, ROLLBACKS = "dropped_steps", "returns_to_a_good_state"
CLIPPED_STEPS, GRADIENT_SPIKES = "clipped_steps", "gradient_spikes"

CHECK_INTERVAL = 100
"""Steps between two checks of the whole state on a CPU; each check stores a rollback copy."""

CHECK_INTERVAL_CUDA = 500
"""The same on a GPU, where steps are short and the copy is transferred to the host."""

SPIKE_FACTOR = 100.0
"""A gradient norm above this multiple of the median of recent norms is a spike."""

_NORM_WINDOW, _MIN_NORMS = 50, 10


@dataclass(frozen=True)
class DroppedStep:
    """A step that was dropped.

    Attributes:
        step: Steps of the run, including this one.
        files: Images of the batch on all ranks.
        in_a_row: Number of consecutive dropped steps, including this one.
    """

    step: int
    files: tuple[str, ...]
    in_a_row: int


class StateNotFinite(Exception):
    """The state after `step` steps contains NaN or infinity; the loop catches it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the state after step {step} is not finite")
        self.step = step


class Guard:
    """Checks the steps and the state of a run; the loop calls its methods in the order below.

    Attributes:
        counts: Counters of incidents, by the names above.
        gradient_norm: Gradient norm of the last step, before clipping.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        *,
        counts: Counter[str] | None = None,
        on_drop: Callable[[DroppedStep], object] = lambda _: None,
        on_rollback: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.setup = setup
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.gradient_norm = 0.0
        self._on_drop, self._on_rollback = on_drop, on_rollback
        self._buffers = BufferCopy(setup.objective)
        self._rollback_copy: Snapshot | None = None
        self._undo_scope: Literal["nothing", "buffers", "all"] = "nothing"
        self._done = self._in_a_row = self._rollbacks = 0
        self._failed_at = -1
        self._norms: deque[float] = deque(maxlen=_NORM_WINDOW)

    def start_at(self, done: int) -> None:
        """Store the initial state of the run; after a rollback it is stored already."""
        if self._rollback_copy is None or self._rollback_copy.step != done:
            self.save_rollback_copy(done)

    def begin_step(self, step: int) -> None:
        """Save what the forward pass of `step` may change."""
        self._done, self._undo_scope = step, "buffers"
        self._buffers.save()

    def end_step(self, done: int) -> None:
        """Mark the step as done, accepted or dropped; `undo` does nothing until the next step."""
        self._done, self._undo_scope = done, "nothing"

    def accepts(self, gradient_norm: float) -> bool:
        """Return whether the step is finite on every rank; its gradient is if all else is."""
        self.gradient_norm = gradient_norm
        if not math.isfinite(gradient_norm):
            return False
        self._count_gradient(self.gradient_norm)
        self._in_a_row = 0
        self._undo_scope = "all"
        return True

    def drop(self, step: int, report: LossReport) -> None:
        """Undo step number `step` (from 0) completely; raise if there are too many in a row."""
        self.undo()
        self.check_finite(step)
        self._in_a_row += 1
        self.counts[DROPPED_STEPS] += 1
        files = tuple(chain(*all_gather_object(self.setup.batches.image_paths(step))))
        losses = ", ".join(f"{name} {value:.4g}" for name, value in mean_scalars(report).items())
        values = f"loss {losses}, gradient norm {self.gradient_norm:.4g}"
        self._on_drop(DroppedStep(step + 1, files, self._in_a_row))
        log.warning("step %d: not finite (%s); step dropped, its changes undone", step + 1, values)
        if self._in_a_row >= self.setup.recipe.machine.max_bad_steps:
            named = "\n  ".join(files)
            row = f", {self._in_a_row} steps in a row" if self._in_a_row > 1 else ""
            raise DivergedError(
                f"step {step + 1}: the loss or its gradient is not finite ({values}){row}. Lower "
                f"optimizer.lr, set optimizer.clip_norm, or check the batch:\n  {named}"
            )

    def undo(self) -> int:
        """Undo an unfinished step and return the number of steps in the restored state."""
        self.setup.optimizer.zero_grad(set_to_none=True)
        if self._undo_scope == "buffers":
            self._buffers.restore()
        elif self._undo_scope == "all":
            # weights, moments and memories may be partly updated
            assert self._rollback_copy is not None
            self._restore(self._rollback_copy)
            self._done = self._rollback_copy.step
        self._undo_scope = "nothing"
        return self._done

    def is_check_due(self, done: int) -> bool:
        """Return whether the state after `done` steps must be checked and copied."""
        recipe = self.setup.recipe
        checkpoint = recipe.machine.checkpoint_every
        is_saved = checkpoint and done % checkpoint == 0
        if is_saved or done == warm_up_steps(recipe.method, recipe.steps):
            return True
        every = CHECK_INTERVAL if self.setup.device.type == "cpu" else CHECK_INTERVAL_CUDA
        return done % every == 0

    def check_finite(self, done: int) -> None:
        """Raise StateNotFinite if the state after `done` steps is not finite (waits)."""
        if not state_is_finite(self.setup.objective, self.setup.optimizer):
            raise StateNotFinite(done)

    def save_rollback_copy(self, done: int) -> None:
        """Store a rollback copy after `done` steps; raise StateNotFinite if the state is bad."""
        self.check_finite(done)
        self._rollback_copy = None  # free its memory for the new copy
        self._rollback_copy = Snapshot(done, self.setup.objective, self.setup.optimizer)
        self._rollbacks = 0

    def roll_back(self, failed_at: int) -> int:
        """Restore the last good state and return its number of steps.

        The state after `failed_at` steps was not finite; if that repeats, raise an error.
        """
        copy, limit = self._rollback_copy, self.setup.recipe.machine.max_bad_steps
        problem = f"step {failed_at}: weights, statistics or the optimiser's moments are not finite"
        # steps are deterministic, so a failure that repeats is not a random fault
        if copy is None or failed_at == self._failed_at or self._rollbacks >= limit:
            since = "" if copy is None else f", again since step {copy.step}"
            raise DivergedError(f"{problem}{since}. Lower optimizer.lr, or set optimizer.clip_norm")
        self._failed_at = failed_at
        self._rollbacks += 1
        self._in_a_row = 0
        self.counts[ROLLBACKS] += 1
        log.warning(f"{problem}; restoring the state after step {copy.step} and continuing there")
        self._restore(copy)
        return copy.step

    def _restore(self, snapshot: Snapshot) -> None:
        self.setup.optimizer.zero_grad(set_to_none=True)
        snapshot.restore(self.setup.objective, self.setup.optimizer)
        self._on_rollback(snapshot.step)

    def _count_gradient(self, norm: float) -> None:
        limit = self.setup.recipe.optimizer.clip_norm
        if limit is not None and norm > limit:
            self.counts[CLIPPED_STEPS] += 1
        median = statistics.median(self._norms) if len(self._norms) >= _MIN_NORMS else 0.0
        if median > 0 and norm > SPIKE_FACTOR * median:
            self.counts[GRADIENT_SPIKES] += 1
            if self.counts[GRADIENT_SPIKES] == 1:
                clipping = "optimizer.clip_norm would clip it" if limit is None else "it is clipped"
                log.warning(
                    f"gradient norm {norm:.3g} is {norm / median:.0f} times the median of recent "
                    f"steps; {clipping}; further spikes are only counted"
                )
        self._norms.append(norm)
