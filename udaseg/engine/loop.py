"""The training loop."""

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
        run: The training setup.
        first: Steps already done.
        on_step: Called after each step with the number of steps done and the report. After a
            rollback (`Guard`), it is called again for repeated steps.
        stop: Ends the loop after the current step if a signal came.
        guard: Drops steps that are not finite and rolls back a damaged state; None creates one.

    Raises:
        DivergedError: Too many steps in a row are not finite (names the files of the batch), or the
            state is repeatedly not finite.
        DoesNotFit: The first step runs out of memory.
        RanOut: A later step runs out of memory.
    """
    guard = guard or Guard(run)
    run.model.train()
    done = first
    while True:
        try:
            guard.begin_from(done)
            return _steps(run, done, guard, on_step, stop, begun=first)
        except StateNotFinite as error:
            done = guard.go_back(error.step)
        if stop.asked():
            return done


def _steps(
    run: Fit, first: int, guard: Guard, on_step: OnStep, stop: StopSignal, *, begun: int
) -> int:
    """Train from step `first`; the run began at `begun` and may have been rolled back since."""
    steps = len(run.batches)
    trained = [part for group in run.optimizer.param_groups for part in group["params"]]
    loader = batches_from(run.batches, first, workers=run.workers, pin=run.device.type == "cuda")
    for batch in loader:
        step = batch.step
        # random numbers of layers (dropout) must be a function of the step and the rank too
        torch.manual_seed(batch.seed + rank())
        stage_step, stage_steps = step - run.begin, (steps - run.begin) / run.schedule_stop
        rate = rate_factor(stage_step, stage_steps, power=run.power, warmup=run.warmup)
        set_rate(run.optimizer, rate)
        with _enough_memory(run, guard, begun):
            guard.begin(step)
            report = gradients(run, batch)
            if guard.accepts(report, _clipped(trained, run.clip_norm)):
                run.optimizer.step()
                run.objective.after_step(stage_step, report)
            else:
                guard.drop(step, report)
            guard.end(step + 1)
            if guard.due(step + 1):
                guard.keep(step + 1)
            elif step + 1 == steps:
                guard.look(step + 1)
            on_step(step + 1, report)
        del report  # otherwise the features of this step live through the next forward pass
        if stop.asked():
            guard.look(step + 1)
            return step + 1
    return steps


def _clipped(trained: list[nn.Parameter], limit: float | None) -> Tensor:
    """Clip the gradient norm to `limit`, if any; return the norm before clipping."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(trained, limit)
    return get_total_norm([part.grad for part in trained if part.grad is not None])


@contextlib.contextmanager
def _enough_memory(run: Fit, guard: Guard, begun: int) -> Iterator[None]:
    """Undo a step that runs out of memory and raise an error with the state of the run."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        done = guard.undo()
        message = memory_told(run.device) or str(error).strip().partition("\n")[0]
        if done == begun:
            raise DoesNotFit(message) from error
        raise RanOut(f"out of memory on {run.device} after step {done}: {message}", done) from error
