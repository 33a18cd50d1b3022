"""The head of DeepLab-v3+."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.models.heads.layers import conv, separable
from udaseg.models.upsampling import upsample
from udaseg.recipe.schema import Model


class DeepLabV3Plus(Head):
    """Atrous pooling with depthwise-separable convolutions, refined with the finest map.

    Args:
        channels: Channels of the feature maps, of which the first and the last are used.
        num_classes: Number of outputs.
        dilations: Dilations of the separable 3x3 branches.
        width: Channels inside the head.

    Logits are on the grid of the first map: stride 4 of most networks, the patch of a plain ViT.

    Reference:
        Chen et al., DeepLab-v3+ (2018). Differs: the image-pooling branch has no batch norm, so
        that a batch of one works, and the decoder has one refining convolution instead of two.

    Example:
        >>> import torch
        >>> from udaseg.models import DeepLabV3Plus
        >>> head = DeepLabV3Plus(channels=(24, 320), num_classes=19, width=64)
        >>> tuple(head([torch.zeros(1, 24, 64, 64), torch.zeros(1, 320, 16, 16)]).shape)
        (1, 19, 64, 64)
    """

    levels = (0, -1)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        dilations: Sequence[int] = (6, 12, 18),
        width: int = 256,
    ) -> None:
        super().__init__()
        low, last = channels[0], channels[-1]
        low_width = max(8, min(48, width // 2))
        self.point = conv(last, width, 1)
        self.branches = nn.ModuleList(
            separable(last, width, dilation=dilation) for dilation in dilations
        )
        self.pool = nn.Conv2d(last, width, 1)
        self.project = conv(width * (2 + len(dilations)), width, 1)
        self.low = conv(low, low_width, 1)
        self.refine = separable(width + low_width, width, dilation=1)
        self.classify = nn.Conv2d(width, num_classes, 1)

    @classmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe."""
        return cls(backbone.channels, num_classes, spec.aspp_dilations, spec.head_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, h, w) on the grid of the first map."""
        low, last = maps[0], maps[-1]
        size = last.shape[-2:]
        pooled = F.relu(self.pool(last.mean((2, 3), keepdim=True))).expand(-1, -1, *size)
        branches = [self.point(last), *(branch(last) for branch in self.branches), pooled]
        context = self.project(torch.cat(branches, 1))
        context = upsample(context, low.shape[-2:])
        logits: Tensor = self.classify(self.refine(torch.cat([context, self.low(low)], 1)))
        return logits.float()


HEAD = DeepLabV3Plus
