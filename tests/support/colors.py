"""Provide a network that labels each pixel by its colour, to test what uses its output."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.small import shipped
from udaseg.data.labels.classes import ClassSpace
from udaseg.inference.trained_model import Model

COLORS = ClassSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
"""Red pixels are road, green pixels sky, blue pixels car."""


class ColorNetwork(nn.Module):
    """Return ten times the colour as logits."""

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=10 * images)


def loaded_colors(
    overrides: Sequence[str] = (),
    network: nn.Module | None = None,
    step: int = 7,
    classes: ClassSpace = COLORS,
    **facts: Any,
) -> Model:
    """Return the colour network as if loaded from a toyland run.

    Images keep their size unless `overrides` change the recipe; `facts` are further arguments of
    `Model`.
    """
    recipe = shipped("toyland/rccr", list(overrides) or ["validation.resize=null"])
    checkpoint = Path("runs/colors/checkpoints/step-000007.pt")
    network = network or ColorNetwork()
    return Model(network, classes, recipe, step, checkpoint, **facts)  # type: ignore[arg-type]


def painted(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the RGB image that the colour network labels as `labels`."""
    return (np.eye(3, dtype=np.uint8) * 255)[labels]


def random_labels(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return labels in blocks of 4 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 3, (-(-height // 4), -(-width // 4)))
    return np.kron(coarse, np.ones((4, 4), int))[:height, :width].astype(np.uint8)
