"""The training engine: loop, guards, alarms, optimisers, signals, and checkpoints."""

from udaseg.engine.alarms import LOOK_EVERY, Alarm, CollapseWatch
from udaseg.engine.checkpoint import Checkpoint, load, manifests, newest, restore, save, sha256_of
from udaseg.engine.determinism import deterministic
from udaseg.engine.footprint import Footprint, footprint
from udaseg.engine.guards import Dropped, Guard
from udaseg.engine.loop import fit
from udaseg.engine.memory import DoesNotFit, RanOut, free, is_out_of_memory
from udaseg.engine.optim import (
    Together,
    Trainer,
    discriminator_optimizer,
    optimizer,
    rate_factor,
    set_rate,
)
from udaseg.engine.parts import Fit
from udaseg.engine.signals import StopSignal

__all__ = [
    "LOOK_EVERY",
    "Alarm",
    "Checkpoint",
    "CollapseWatch",
    "DoesNotFit",
    "Dropped",
    "Fit",
    "Footprint",
    "Guard",
    "RanOut",
    "StopSignal",
    "Together",
    "Trainer",
    "deterministic",
    "discriminator_optimizer",
    "fit",
    "footprint",
    "free",
    "is_out_of_memory",
    "load",
    "manifests",
    "newest",
    "optimizer",
    "rate_factor",
    "restore",
    "save",
    "set_rate",
    "sha256_of",
]
