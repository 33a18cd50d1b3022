"""The training loop: one step after another, in the order of events."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from udaseg.adaptation import LossReport, Objective
from udaseg.data import TrainingBatches, batches_from
from udaseg.engine.optim import Trainer, rate_factor, set_rate
from udaseg.engine.signals import StopSignal
from udaseg.errors import DivergedError

OnStep = Callable[[int, LossReport], None]


@dataclass(frozen=True)
class Fit:
    """All that a run trains with.

    Attributes:
        model: What is called with a batch: the objective, or its distributed wrapper.
        objective: The bare objective.
        optimizer: Holds every trained parameter once.
        batches: Batch i of the run.
        device: Where it runs.
        precision: fp32, or bf16 autocast.
        workers: Loader processes.
        power: Of the polynomial decay of the learning rate.
        warmup: Its steps of linear rise.
        clip_norm: Largest gradient norm; None does not clip.
        check_every: Steps between two looks at whether the loss is finite; on a GPU a look waits
            for the device.
        begin: Steps of the run before this objective's first; the rate decays from here.
        schedule_stop: How far the decay has come at the end, in (0, 1].
    """

    model: nn.Module
    objective: Objective
    optimizer: Trainer
    batches: TrainingBatches
    device: torch.device
    precision: Literal["fp32", "bf16"]
    workers: int
    power: float
    warmup: int
    clip_norm: float | None
    check_every: int
    begin: int = 0
    schedule_stop: float = 1.0


def fit(run: Fit, *, first: int, on_step: OnStep, stop: StopSignal) -> int:
    """Train from step `first` to the end or to a signal; return the number of steps done.

    Args:
        run: What trains.
        first: Steps already done.
        on_step: Called after each step with the number of steps done and the report.
        stop: Ends the loop after the current step once a signal came.

    Raises:
        DivergedError: The loss is not finite; names the files of the batch.
    """
    steps = len(run.batches)
    run.model.train()
    trained = [part for group in run.optimizer.param_groups for part in group["params"]]
    loader = batches_from(run.batches, first, workers=run.workers, pin=run.device.type == "cuda")
    for batch in loader:
        step = batch.step
        # what a layer draws by itself (dropout) is a function of the step too
        torch.manual_seed(batch.seed)
        own_step, own_steps = step - run.begin, (steps - run.begin) / run.schedule_stop
        rate = rate_factor(own_step, own_steps, power=run.power, warmup=run.warmup)
        set_rate(run.optimizer, rate)
        with _autocast(run):
            report: LossReport = run.model(batch.to(run.device))
        if (step + 1) % run.check_every == 0 and not math.isfinite(float(report.total.detach())):
            files = "\n  ".join(run.batches.names(step))
            parts = {name: float(value.detach()) for name, value in report.parts.items()}
            raise DivergedError(
                f"step {step + 1}: the loss is not finite ({parts}); the last checkpoint stands. "
                f"Lower optimizer.lr, or look at the batch:\n  {files}"
            )
        run.optimizer.zero_grad(set_to_none=True)
        report.total.backward()  # type: ignore[no-untyped-call]  # torch's own
        if run.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, run.clip_norm)
        run.optimizer.step()
        run.objective.after_step(own_step, report)
        on_step(step + 1, report)
        del report  # or this step's features would live through the next forward pass
        if stop.number is not None:
            return step + 1
    return steps


def _autocast(run: Fit) -> contextlib.AbstractContextManager[object]:
    if run.precision == "bf16":
        return torch.autocast(run.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
