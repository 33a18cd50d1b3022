"""All that a run trains with, on one page."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from udaseg.adaptation import Objective
from udaseg.data import TrainingBatches
from udaseg.engine.optim import Trainer


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
        checkpoint_every: Steps between two checkpoints; before each the whole state is looked at.
            0 has none but the last.
        max_bad_steps: So many steps in a row that are not finite end the run.
        micro_batches: Equal parts that a batch is split into, one after another, to save memory.
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
    checkpoint_every: int = 0
    max_bad_steps: int = 5
    micro_batches: int = 1
    begin: int = 0
    schedule_stop: float = 1.0
