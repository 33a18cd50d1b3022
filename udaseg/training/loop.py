"""The training loop."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from udaseg.data.loading.workers import iterate_batches
from udaseg.distributed import rank
from udaseg.methods.objectives.objective import LossReport
from udaseg.signals import StopSignal
from udaseg.training.guards import Guard, StateNotFinite
from udaseg.training.memory import (
    FirstStepOutOfMemory,
    OutOfMemory,
    is_out_of_memory,
    peak_memory_message,
)
from udaseg.training.optimizer import learning_rate_factor, set_learning_rate
from udaseg.training.setup import TrainingSetup
from udaseg.training.step import compute_gradients

OnStep = Callable[[int, LossReport], None]


def train(
    run: TrainingSetup, *, first: int, on_step: OnStep, stop: StopSignal, guard: Guard | None = None
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
            guard.start_at(done)
            return _train_steps(run, done, guard, on_step, stop, begun=first)
        except StateNotFinite as error:
            done = guard.roll_back(error.step)
        if stop.stop_requested():
            return done


def _train_steps(
    run: TrainingSetup, first: int, guard: Guard, on_step: OnStep, stop: StopSignal, *, begun: int
) -> int:
    """Train from step `first`; the run began at `begun` and may have been rolled back since."""
    steps = len(run.batches)
    trained = [part for group in run.optimizer.param_groups for part in group["params"]]
    loader = iterate_batches(run.batches, first, workers=run.workers, pin=run.device.type == "cuda")
    for batch in loader:
        step = batch.step
        # random numbers of layers (dropout) must be a function of the step and the rank too
        torch.manual_seed(batch.seed + rank())
        stage_step, stage_steps = step - run.begin, (steps - run.begin) / run.schedule_stop
        rate = learning_rate_factor(stage_step, stage_steps, power=run.power, warmup=run.warmup)
        set_learning_rate(run.optimizer, rate)
        with _convert_out_of_memory(run, guard, begun):
            guard.begin_step(step)
            report = compute_gradients(run, batch)
            if guard.accepts(report, _clip_gradient(trained, run.clip_norm)):
                run.optimizer.step()
                run.objective.after_step(stage_step, report)
            else:
                guard.drop(step, report)
            guard.end_step(step + 1)
            if guard.is_check_due(step + 1):
                guard.save_rollback_copy(step + 1)
            elif step + 1 == steps:
                guard.check_finite(step + 1)
            on_step(step + 1, report)
        del report  # otherwise the features of this step live through the next forward pass
        if stop.stop_requested():
            guard.check_finite(step + 1)
            return step + 1
    return steps


def _clip_gradient(trained: list[nn.Parameter], limit: float | None) -> Tensor:
    """Clip the gradient norm to `limit`, if any; return the norm before clipping."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(trained, limit)
    return get_total_norm([part.grad for part in trained if part.grad is not None])


@contextlib.contextmanager
def _convert_out_of_memory(run: TrainingSetup, guard: Guard, begun: int) -> Iterator[None]:
    """Undo a step that runs out of memory and raise an error with the state of the run."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        done = guard.undo()
        message = peak_memory_message(run.device) or str(error).strip().partition("\n")[0]
        if done == begun:
            raise FirstStepOutOfMemory(message) from error
        raise OutOfMemory(
            f"out of memory on {run.device} after step {done}: {message}", done
        ) from error
