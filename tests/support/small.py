"""Provide networks and recipes small enough for steps of milliseconds."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.projector import Projector
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.contrast import Projector as ProjectorSpec
from udaseg.recipe.contrast import Prototypes, Regional, Semantic
from udaseg.recipe.load import load
from udaseg.recipe.schema import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]

REGIONAL = Regional(
    weight=0.01,
    ramp=True,
    start=0,
    temperature=0.1,
    min_confidence=0.75,
    bank_steps=3,
    cells_per_view=12,
    region_size=1,
    square_per="image",
    keep_ignored=False,
    projector=ProjectorSpec(channels=8, trainable=True),
)
PROTOTYPES = Prototypes(weight=1.0, temperature=0.1, momentum=0.9, absent="keep", normalise=True)
SEMANTIC = Semantic(
    variant="prototype", weight=1.0, temperature=0.1, momentum=0.9, bank_rows=3, channels=8
)


class NormedHead(DeepLabV2):
    """A head with a batch norm before it, like those inside DeepLab-v3+."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__((channels,), classes, (1, 2))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits (B, K, h, w)."""
        return super().forward([self.norm(maps[-1])])


def small_segmenter(
    *,
    classes: int = 5,
    projector: bool = True,
    seed: int = 0,
    batch_norm: Literal["train", "affine_frozen", "frozen"] = "train",
    head_norm: bool = False,
    frozen: Collection[str] = (),
) -> Segmenter:
    """Return a two-layer network of stride 8 with batch norm, a head, and a projector."""
    torch.manual_seed(seed)
    low = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.ReLU())
    rest = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    body = SequentialBackbone(low, rest, ends=(0, 3), channels=(6, 8), strides=(4, 8))
    return Segmenter(
        body,
        NormedHead(8, classes) if head_norm else DeepLabV2((8,), classes, (1, 2)),
        batch_norm=batch_norm,
        projector=Projector(8, 4) if projector else None,
        frozen=frozen,
    )


def shipped(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the shipped recipe `name`, such as `toyland/rccr`, with overrides."""
    return load(REPOSITORY / "recipes" / f"{name}.yaml", overrides=list(overrides))
