"""The engine: the loop, optimisers, signals, and checkpoints."""

from udaseg.engine.checkpoint import Checkpoint, load, newest, restore, save
from udaseg.engine.loop import Fit, fit
from udaseg.engine.optim import (
    Together,
    Trainer,
    discriminator_optimizer,
    optimizer,
    rate_factor,
    set_rate,
)
from udaseg.engine.signals import StopSignal

__all__ = [
    "Checkpoint",
    "Fit",
    "StopSignal",
    "Together",
    "Trainer",
    "discriminator_optimizer",
    "fit",
    "load",
    "newest",
    "optimizer",
    "rate_factor",
    "restore",
    "save",
    "set_rate",
]
