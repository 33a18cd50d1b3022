"""Types that several parts of the package share; `typing.get_args` returns the words of a choice.

Imports nothing heavy, so that the command line can show them at once.
"""

import re
from typing import Annotated, Literal

from annotated_types import Ge

from udaseg.errors import UsageError
from udaseg.sizes import ShortSide

Size = tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
"""(height, width) in pixels."""

Resize = Size | ShortSide
"""The size of images before they are cut."""

DEVICES = "auto, cpu, cuda or cuda:N"
"""What `machine.device` and `--device` must be, in words."""

DEVICE = re.compile("auto|cpu|(cuda|mps|xpu)(:[0-9]{1,3})?")
"""What they can be."""

PROTOCOLS, CONVENTIONS = (19, 16, 13), (19, 16)
"""Numbers of classes that a mean can take, and ways to count the classes that SYNTHIA lacks."""


def check_scoring(protocol: int | None, convention: int | None) -> None:
    """Refuse a mean, or a convention, that does not exist; None is the network's own.

    Raises:
        UsageError: There is no such protocol or convention.
    """
    if protocol not in (None, *PROTOCOLS):
        raise UsageError(f"--protocol must be 19, 16 or 13, got {protocol}")
    if convention not in (None, *CONVENTIONS):
        raise UsageError(f"--convention must be 19 or 16, got {convention}")


Precision = Literal["fp32", "bf16"]
"""Numeric precision of the network."""

BatchNorm = Literal["train", "affine_frozen", "frozen"]
"""Mode of the backbone's batch norms in training."""

HeadName = Literal[
    "deeplab_v2",
    "deeplab_v3plus",
    "daformer",
    "upsample",
    "pyramid",
    "linear",
]
"""The built-in heads; each is a module in `udaseg/models/heads/`."""

Sampling = Literal["uniform", "class_balanced", "rare_class"]
"""How images are sampled."""

Resampling = Literal["area", "bicubic"]
"""How images are resized."""

Logger = Literal["tensorboard", "wandb", "mlflow"]
"""A program that shows the metrics of runs; also the name of its package and of udaseg's extra."""

Criterion = Literal["entropy", "infomax", "teacher", "flip", "source", "drift"]
"""Criterion that compares checkpoints without target labels."""
