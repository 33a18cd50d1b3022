"""The contract of heads: from a list of feature maps to logits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar, Self

from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.recipe.choices import HeadName
from udaseg.recipe.schema import Model


class Head(nn.Module, ABC):
    """A network from the feature maps of a backbone to logits.

    How many maps there are depends on the backbone. A head takes the first, `maps[0]`, the last,
    `maps[-1]`, or the one of a stride, which it looks up in `backbone.strides` when it is built.

    Attributes:
        levels: Positions of the maps that the head takes, such as (0, -1); None for all. A backbone
            that can do so returns only these.

    Example:
        >>> import torch
        >>> from udaseg.models import Head
        >>> class Linear(Head):
        ...     levels = (-1,)
        ...
        ...     def __init__(self, channels, num_classes):
        ...         super().__init__()
        ...         self.classify = torch.nn.Conv2d(channels[-1], num_classes, 1)
        ...
        ...     @classmethod
        ...     def from_spec(cls, spec, backbone, num_classes):
        ...         return cls(backbone.channels, num_classes)
        ...
        ...     def forward(self, maps):
        ...         return self.classify(maps[-1])
        >>> tuple(Linear((24, 320), 19)([torch.zeros(1, 320, 8, 16)]).shape)
        (1, 19, 8, 16)
    """

    levels: ClassVar[tuple[int, ...] | None] = None

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe.

        Args:
            spec: The section `model` of the recipe.
            backbone: Returns the maps; has their channels and strides.
            num_classes: Number of outputs.
        """

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, h, w), on the grid of the last map or finer.

        Args:
            maps: (B, C, h', w') each, finest first.
        """


def head_class(name: HeadName) -> type[Head]:
    """Return the class of a head: `HEAD` of the module of that name in this folder."""
    head: type[Head] = import_module(f"udaseg.models.heads.{name}").HEAD
    return head
