"""The head of DeepLab-v2."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.recipe.schema import Model

_INIT_STD = 0.01


class DeepLabV2(Head):
    """Sum of dilated 3x3 convolutions on the last feature map.

    Args:
        channels: Channels of the feature maps, of which the last is used.
        num_classes: Number of outputs.
        dilations: (6, 12, 18, 24) in the paper; the releases of RCCR and DACS use only (6, 12).

    Reference:
        Chen et al., DeepLab (2018), figure 7. The bias of each branch is kept, as published.

    Example:
        >>> import torch
        >>> from udaseg.models import DeepLabV2
        >>> head = DeepLabV2(channels=(24, 320), num_classes=19, dilations=(6, 12))
        >>> tuple(head([torch.zeros(1, 24, 64, 64), torch.zeros(1, 320, 16, 16)]).shape)
        (1, 19, 16, 16)
    """

    levels = (-1,)

    def __init__(
        self, channels: Sequence[int], num_classes: int, dilations: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels[-1], num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=_INIT_STD)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    @classmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe."""
        return cls(backbone.channels, num_classes, spec.aspp_dilations)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, h, w) on the grid of the last map.

        Under autocast, too, the branches are added in float32.
        """
        last = maps[-1]
        logits: Tensor = self.branches[0](last).float()
        for branch in list(self.branches)[1:]:
            logits = logits + branch(last)
        return logits


HEAD = DeepLabV2
