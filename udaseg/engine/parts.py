"""Everything that the training loop of a run needs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from udaseg.adaptation import Objective
from udaseg.data import TrainingBatches
from udaseg.engine.optim import Trainer


@dataclass(frozen=True)
class Fit:
    """Everything that the training loop of a run needs.

    Attributes:
        model: Called with a batch: the objective, or its distributed wrapper.
        objective: The objective without a wrapper.
        optimizer: Contains every trained parameter once.
        batches: Batch i of the run.
        device: Device of the model.
        precision: `fp32`, or `bf16` autocast.
        workers: Number of loader processes.
        power: Exponent of the polynomial decay of the learning rate.
        warmup: Steps of linear warm-up.
        clip_norm: Maximum gradient norm; None does not clip.
        checkpoint_every: Steps between two checkpoints, each preceded by a check of the whole
            state; 0 writes only the last checkpoint.
        max_bad_steps: Number of consecutive steps that are not finite after which the run ends.
        micro_batches: Number of equal parts of a batch, processed in turn to save memory.
        begin: Steps of the run before the first of this objective; the rate decays from here.
        schedule_stop: Fraction of the decay reached at the end, in (0, 1].
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
    checkpoint_every: int = 0
    max_bad_steps: int = 5
    micro_batches: int = 1
    begin: int = 0
    schedule_stop: float = 1.0
