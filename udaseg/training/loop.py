"""The training loop."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from udaseg.data.files.images import keep_freed_memory
from udaseg.data.loading.workers import iterate_batches
from udaseg.distributed import RankSums, rank, to_device, world_size
from udaseg.methods.objectives.objective import LossReport
from udaseg.signals import StopSignal
from udaseg.training import memory
from udaseg.training.guards import Guard, StateNotFinite
from udaseg.training.optimizer import learning_rate_factor, set_learning_rate
from udaseg.training.setup import TrainingSetup, worker_count
from udaseg.training.step import compute_gradients

_SIGNALS = "signals"
_ALL_MEMORY = 2**31 - 1

OnStep = Callable[[int, LossReport], None]


def run_steps(
    setup: TrainingSetup,
    *,
    first: int,
    on_step: OnStep,
    stop: StopSignal,
    guard: Guard | None = None,
) -> int:
    """Train from step `first` to the end or to a signal; return the number of steps done.

    `on_step` is called after each step with the number of steps done and the report; after a
    rollback (`Guard`), it is called again for the repeated steps.
    """
    guard = guard or Guard(setup)
    keep_freed_memory(_ALL_MEMORY)  # of one view's graph, for the next: a tenth of a step on a CPU
    setup.objective.train()
    done = first
    while True:
        try:
            guard.start_at(done)
            return _run_steps(setup, done, guard, on_step, stop, started_at=first)
        except StateNotFinite as error:
            done = guard.roll_back(error.step)
        if stop.stop_requested():
            return done


def try_step(setup: TrainingSetup, step: int) -> None:
    """Compute the gradients of a step and undo it.

    Raises:
        FirstStepOutOfMemory: It does not fit in memory; nothing was changed.
    """
    guard = Guard(setup)
    setup.objective.train()
    with _convert_out_of_memory(setup, guard, started_at=step):
        guard.begin_step(step)
        compute_gradients(setup, setup.batches[step], RankSums())
    guard.undo()


def _run_steps(
    setup: TrainingSetup,
    first: int,
    guard: Guard,
    on_step: OnStep,
    stop: StopSignal,
    *,
    started_at: int,
) -> int:
    """Train from step `first`; the loop started at `started_at`, and may have been rolled back."""
    steps, stage, optimizer = len(setup.batches), setup.stage, setup.recipe.optimizer
    trained = [part for group in setup.optimizer.param_groups for part in group["params"]]
    workers = worker_count(setup.recipe.machine.workers, setup.device)
    loader = iterate_batches(setup.batches, first, workers=workers, pin=setup.device.type == "cuda")
    for batch in loader:
        step = batch.step
        # random numbers of layers (dropout) must be a function of the step and the rank too
        torch.manual_seed(batch.seed + rank())
        stage_step, decay_steps = step - stage.begin, (steps - stage.begin) / stage.schedule_stop
        rate = learning_rate_factor(
            stage_step,
            decay_steps,
            power=optimizer.power,
            warmup=optimizer.warmup,
            floor=optimizer.warmup_floor,
        )
        set_learning_rate(setup.optimizer, rate)
        with _convert_out_of_memory(setup, guard, started_at):
            guard.begin_step(step)
            sums = RankSums(**_signals(stop, setup.device))
            report = compute_gradients(setup, batch, sums)
            for part in setup.objective.idle_parameters(stage_step):
                part.grad = None
            norm, stops = _read(_clip_gradient(trained, optimizer.clip_norm), sums, stop)
            if guard.accepts(norm):
                setup.optimizer.step()
                setup.objective.after_step(stage_step, report)
            else:
                guard.drop(step, report)
            guard.end_step(step + 1)
            if guard.is_check_due(step + 1):
                guard.save_rollback_copy(step + 1)
            elif step + 1 == steps:
                guard.check_finite(step + 1)
            on_step(step + 1, report)
        del report  # otherwise the features of this step live through the next forward pass
        if stops:
            guard.check_finite(step + 1)
            return step + 1
    return steps


def _clip_gradient(trained: list[nn.Parameter], limit: float | None) -> Tensor:
    """Clip the gradient norm to `limit`, if any; return the norm before clipping."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(trained, limit)
    return get_total_norm([part.grad for part in trained if part.grad is not None])


def _signals(stop: StopSignal, device: torch.device) -> dict[str, Tensor]:
    """Return what this rank tells the others of signals that it received."""
    return {} if world_size() == 1 else {_SIGNALS: to_device(stop.received(), device)}


def _read(norm: Tensor, sums: RankSums, stop: StopSignal) -> tuple[float, bool]:
    """Return the norm of the gradient, and whether to stop after this step (waits)."""
    if world_size() == 1:
        return norm.item(), stop.stop_requested()
    value, *received = torch.cat([norm.double()[None], sums.totals[_SIGNALS]]).tolist()
    return value, stop.agree(received)


@contextlib.contextmanager
def _convert_out_of_memory(setup: TrainingSetup, guard: Guard, started_at: int) -> Iterator[None]:
    """Undo a step that runs out of memory and raise an error with the state of the run."""
    try:
        yield
    except memory.DEVICE_ERRORS as error:
        if not memory.is_out_of_memory(error):
            raise
        done = guard.undo()
        message = memory.peak_memory_message(setup.device)
        message = message or str(error).strip().partition("\n")[0]
        if done == started_at:
            raise memory.FirstStepOutOfMemory(message) from error
        raise memory.OutOfMemory(
            f"out of memory on {setup.device} after step {done}: {message}", done
        ) from error
