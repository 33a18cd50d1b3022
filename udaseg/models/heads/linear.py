"""A linear head."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.recipe.schema import Model

_INIT_STD = 0.01


class LinearHead(Head):
    """Batch norm and a 1x1 convolution on the last feature map.

    Args:
        channels: Channels of the feature maps, of which the last is used.
        num_classes: Number of outputs.

    Reference:
        Oquab et al., DINOv2 (2023), section 7.4, and its code; without the four-level form ("+ms").

    Example:
        >>> import torch
        >>> from udaseg.models import LinearHead
        >>> head = LinearHead(channels=(384,), num_classes=19)
        >>> tuple(head([torch.zeros(1, 384, 19, 25)]).shape)
        (1, 19, 19, 25)
    """

    levels = (-1,)

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1])
        self.classify = nn.Conv2d(channels[-1], num_classes, 1)
        nn.init.normal_(self.classify.weight, std=_INIT_STD)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    @classmethod
    def from_spec(
        cls,
        spec: Model,  # noqa: ARG003 (one contract)
        backbone: Backbone,
        num_classes: int,
    ) -> Self:
        """Return the head of a recipe."""
        return cls(backbone.channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, h, w) on the grid of the last map."""
        logits: Tensor = self.classify(self.norm(maps[-1]))
        return logits.float()


HEAD = LinearHead
