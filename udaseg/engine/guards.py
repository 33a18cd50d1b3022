"""Guards of the loop: a step that is not finite is dropped, a state that is not is put back.

A dropped step leaves everything as it was before its forward pass. Whether to drop it is asked once
a step, when all that the answer hangs on has been queued: one read of two numbers, on a GPU too.
Deciding on the device instead would have to mask every write of a step (statistics of batch norms,
moments, teacher, memories), and would tell of k bad steps only after more of them.

A state that is damaged between two steps (a bit flip, a fault of a kernel) spoils all steps that
follow, so dropping them would not help: the last good copy of everything is put back, and the steps
since are done again. As a run is a function of (recipe, step), it then ends where an undisturbed
one ends.
"""

import logging
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from udaseg.adaptation import LossReport
from udaseg.distributed import gathered, mean_over_ranks, sum_over_ranks
from udaseg.engine.parts import Fit
from udaseg.engine.snapshot import BufferCopy, Snapshot, state_is_finite
from udaseg.errors import DivergedError

log = logging.getLogger(__name__)

DROPPED, RETURNED = "dropped_steps", "returns_to_a_good_state"
CLIPPED, SPIKES = "clipped_steps", "gradient_spikes"
CHECK_EVERY = 100
"""Steps between two looks at the whole state on a CPU, each with a copy to go back to."""
CHECK_EVERY_CUDA = 500
"""The same on a GPU, where steps are short and the copy travels to the host."""
SPIKE = 100.0
"""A gradient so many times as long as the median of the last ones is a spike."""
_USUAL, _LEAST = 50, 10


@dataclass(frozen=True)
class Dropped:
    """A step that was dropped.

    Attributes:
        step: Steps of the run with it.
        files: The batch's images, of all ranks.
        values: What was reported, by name, as the mean over ranks; some are not finite.
        gradient_norm: Before clipping.
        in_a_row: How many steps running were dropped, with this one.
    """

    step: int
    files: tuple[str, ...]
    values: Mapping[str, float]
    gradient_norm: float
    in_a_row: int


class StateNotFinite(Exception):
    """The state after `step` steps holds NaN or infinity; never leaves the engine."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the state after step {step} is not finite")
        self.step = step


class Guard:
    """Watches over the steps of a run; the loop calls it in the order of the methods below.

    Args:
        run: What trains.
        counts: Where steps that were dropped, clipped and so on are counted, by the names above.
        on_drop: Called for each step that is dropped.
        on_return: Called with the number of steps done when the run goes back to there.

    Attributes:
        gradient_norm: Of the last step, before clipping.
    """

    def __init__(
        self,
        run: Fit,
        *,
        counts: Counter[str] | None = None,
        on_drop: Callable[[Dropped], None] | None = None,
        on_return: Callable[[int], None] | None = None,
    ) -> None:
        self.run = run
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.gradient_norm = 0.0
        self._on_drop, self._on_return = on_drop, on_return
        self._buffers = BufferCopy(run.objective)
        self._kept: Snapshot | None = None
        self._undoes: Literal["nothing", "buffers", "all"] = "nothing"
        self._done = 0
        self._in_a_row = self._returns = 0
        self._failed_at = -1
        self._norms: deque[float] = deque(maxlen=_USUAL)

    def begin_from(self, done: int) -> None:
        """Keep the state that the run begins with; after going back it is kept already."""
        if self._kept is None or self._kept.step != done:
            self.keep(done)

    def begin(self, step: int) -> None:
        """Remember what the forward pass of `step` may change."""
        self._done, self._undoes = step, "buffers"
        self._buffers.take()

    def end(self, done: int) -> None:
        """Take the step as done, kept or dropped; there is nothing to undo until the next."""
        self._done, self._undoes = done, "nothing"

    def accepts(self, report: LossReport, gradient_norm: Tensor) -> bool:
        """Return whether the step is finite on every rank, loss, gradient and views (waits).

        Args:
            report: Of the step.
            gradient_norm: Scalar, before clipping.
        """
        norm = gradient_norm.detach().float()
        bad = sum_over_ranks(1 - _finite(report, norm).float())
        refused, self.gradient_norm = torch.stack([bad, norm]).tolist()
        if refused:
            return False
        self._count(self.gradient_norm)
        self._in_a_row = 0
        self._undoes = "all"
        return True

    def drop(self, step: int, report: LossReport) -> None:
        """Undo the step whose number is `step` (from 0): nothing of it stays.

        Raises:
            StateNotFinite: It was no fault of the step.
            DivergedError: Too many in a row; names the files of the batch.
        """
        self.undo()
        if not state_is_finite(self.run.objective, self.run.optimizer):
            raise StateNotFinite(step)
        self._in_a_row += 1
        self.counts[DROPPED] += 1
        files = tuple(name for part in gathered(self.run.batches.names(step)) for name in part)
        dropped = Dropped(step + 1, files, _values(report), self.gradient_norm, self._in_a_row)
        if self._on_drop is not None:
            self._on_drop(dropped)
        said = f"loss {_shown(dropped.values)}, gradient norm {self.gradient_norm:.4g}"
        log.warning("step %d: not finite (%s); dropped as if it had not happened", step + 1, said)
        if self._in_a_row >= self.run.max_bad_steps:
            named = "\n  ".join(files)
            row = f", in {self._in_a_row} steps running" if self._in_a_row > 1 else ""
            raise DivergedError(
                f"step {step + 1}: the loss or its gradient is not finite ({said}){row}. Lower "
                f"optimizer.lr, set optimizer.clip_norm, or look at the batch:\n  {named}"
            )

    def undo(self) -> int:
        """Undo what a step began, and return how many steps the state now has behind it."""
        self.run.optimizer.zero_grad(set_to_none=True)
        if self._undoes == "buffers":
            self._buffers.put_back()
        elif self._undoes == "all":
            # weights, moments and memories may have moved in part
            assert self._kept is not None
            self._put_back(self._kept)
            self._done = self._kept.step
        self._undoes = "nothing"
        return self._done

    def due(self, done: int) -> bool:
        """Return whether the state after `done` steps is to be looked at and copied."""
        checkpoint = self.run.checkpoint_every
        if checkpoint and done % checkpoint == 0:
            return True
        every = CHECK_EVERY if self.run.device.type == "cpu" else CHECK_EVERY_CUDA
        return done % every == 0

    def look(self, done: int) -> None:
        """Raise StateNotFinite if the state after `done` steps is not finite (waits)."""
        if not state_is_finite(self.run.objective, self.run.optimizer):
            raise StateNotFinite(done)

    def keep(self, done: int) -> None:
        """Copy the state after `done` steps, to go back to; raise StateNotFinite if it is bad."""
        self.look(done)
        self._kept = None  # its memory is needed for the new one
        self._kept = Snapshot(done, self.run.objective, self.run.optimizer)
        self._returns = 0

    def go_back(self, failed_at: int) -> int:
        """Put the last good state back and return the steps that it has behind it.

        Args:
            failed_at: Where a state was found not to be finite.

        Raises:
            DivergedError: There is no good state, or the same steps spoilt it before.
        """
        # done again, the same step does the same: what comes back at once was no accident
        repeated = failed_at == self._failed_at or self._returns >= self.run.max_bad_steps
        if self._kept is None or repeated:
            since = "" if self._kept is None else f", again since step {self._kept.step}"
            raise DivergedError(
                f"step {failed_at}: weights, statistics or the optimiser's moments are not finite"
                f"{since}. Lower optimizer.lr, or set optimizer.clip_norm"
            )
        self._failed_at = failed_at
        self._returns += 1
        self._in_a_row = 0
        self.counts[RETURNED] += 1
        log.warning(
            "step %d: weights, statistics or the optimiser's moments are not finite; going back to "
            "the state after step %d and on from there",
            *(failed_at, self._kept.step),
        )
        self._put_back(self._kept)
        return self._kept.step

    def _put_back(self, kept: Snapshot) -> None:
        self.run.optimizer.zero_grad(set_to_none=True)
        kept.restore(self.run.objective, self.run.optimizer)
        if self._on_return is not None:
            self._on_return(kept.step)

    def _count(self, norm: float) -> None:
        limit = self.run.clip_norm
        if limit is not None and norm > limit:
            self.counts[CLIPPED] += 1
        usual = statistics.median(self._norms) if len(self._norms) >= _LEAST else 0.0
        if usual > 0 and norm > SPIKE * usual:
            self.counts[SPIKES] += 1
            if self.counts[SPIKES] == 1:
                how = "optimizer.clip_norm would clip it" if limit is None else "it is clipped"
                log.warning(
                    "the gradient is %.3g long, %.0f times the usual; %s; further ones are counted",
                    *(norm, norm / usual, how),
                )
        self._norms.append(norm)


def _finite(report: LossReport, gradient_norm: Tensor) -> Tensor:
    """Return on the device whether loss, figures, gradient, and what was seen are finite."""
    scalars = [report.total, *report.parts.values(), *report.figures.values(), gradient_norm]
    # a memory would take in what a loss leaves out, so every view is looked at
    seen = [value for value in _views(report.views) if value.is_floating_point()]
    if seen:
        scalars.append(get_total_norm(seen))
    return torch.stack([value.detach().float() for value in scalars]).isfinite().all()


def _views(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif is_dataclass(value):
        for part in fields(value):
            yield from _views(getattr(value, part.name))


def _values(report: LossReport) -> dict[str, float]:
    values = {"total": report.total, **report.parts, **report.figures}
    return {name: float(mean_over_ranks(value.detach())) for name, value in values.items()}


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
