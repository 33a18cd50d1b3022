"""The training loop: one step after another, in the order of events."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from udaseg.adaptation import LossReport
from udaseg.data import batches_from
from udaseg.distributed import rank
from udaseg.engine.guards import Guard, StateNotFinite
from udaseg.engine.memory import DoesNotFit, RanOut, gradients, is_out_of_memory, memory_told
from udaseg.engine.optim import rate_factor, set_rate
from udaseg.engine.parts import Fit
from udaseg.engine.signals import StopSignal

OnStep = Callable[[int, LossReport], None]


def fit(
    run: Fit, *, first: int, on_step: OnStep, stop: StopSignal, guard: Guard | None = None
) -> int:
    """Train from step `first` to the end or to a signal; return the number of steps done.

    Args:
        run: What trains.
        first: Steps already done.
        on_step: Called after each step with the number of steps done and the report. After the run
            went back (`Guard`), steps are told again.
        stop: Ends the loop after the current step once a signal came.
        guard: Drops steps that are not finite and goes back to a good state; None makes one.

    Raises:
        DivergedError: Too many steps in a row are not finite (names the files of the batch), or the
            state is not, again and again.
        DoesNotFit: The first step needs more memory than there is.
        RanOut: A later one does.
    """
    guard = guard or Guard(run)
    run.model.train()
    done = first
    while True:
        try:
            guard.begin_from(done)
            return _steps(run, done, guard, on_step, stop, begun=first)
        except StateNotFinite as found:
            done = guard.go_back(found.step)
        if stop.asked():
            return done


def _steps(
    run: Fit, first: int, guard: Guard, on_step: OnStep, stop: StopSignal, *, begun: int
) -> int:
    """Train from step `first`, of a run that began with step `begun` and may have gone back."""
    steps = len(run.batches)
    trained = [part for group in run.optimizer.param_groups for part in group["params"]]
    loader = batches_from(run.batches, first, workers=run.workers, pin=run.device.type == "cuda")
    for batch in loader:
        step = batch.step
        # what a layer draws by itself (dropout) is a function of the step and the rank too
        torch.manual_seed(batch.seed + rank())
        own_step, own_steps = step - run.begin, (steps - run.begin) / run.schedule_stop
        rate = rate_factor(own_step, own_steps, power=run.power, warmup=run.warmup)
        set_rate(run.optimizer, rate)
        with _enough_memory(run, guard, begun):
            guard.begin(step)
            report = gradients(run, batch)
            if guard.accepts(report, _clipped(trained, run.clip_norm)):
                run.optimizer.step()
                run.objective.after_step(own_step, report)
            else:
                guard.drop(step, report)
            guard.end(step + 1)
            if guard.due(step + 1):
                guard.keep(step + 1)
            elif step + 1 == steps:
                guard.look(step + 1)
            on_step(step + 1, report)
        del report  # or this step's features would live through the next forward pass
        if stop.asked():
            guard.look(step + 1)
            return step + 1
    return steps


def _clipped(trained: list[nn.Parameter], limit: float | None) -> Tensor:
    """Clip the gradient to `limit`, where there is one, and return its norm before that."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(trained, limit)
    return get_total_norm([part.grad for part in trained if part.grad is not None])


@contextlib.contextmanager
def _enough_memory(run: Fit, guard: Guard, begun: int) -> Iterator[None]:
    """Turn running out of memory into an error that tells how the run stands, after undoing."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        done = guard.undo()
        told = memory_told(run.device) or str(error).strip().partition("\n")[0]
        if done == begun:
            raise DoesNotFit(told) from error
        raise RanOut(f"out of memory on {run.device} after step {done}: {told}", done) from error
