"""The head of DAFormer: all feature maps on the finest grid, and what surrounds a cell."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.models.heads.layers import conv, separable
from udaseg.models.upsampling import upsample
from udaseg.recipe.schema import Model

_INIT_STD = 0.01
_DROPOUT = 0.1


class DAFormerHead(Head):
    """Every map at the size of the first, fused by atrous depthwise-separable convolutions.

    Args:
        channels: Channels of the feature maps, all of which are used.
        strides: Their strides.
        num_classes: Number of outputs.
        dilations: Dilations of the separable 3x3 branches, beside one branch of a 1x1 convolution.
        width: Channels inside the head.

    Reference:
        Hoyer et al., DAFormer (2022), and its code, with `dilations` (6, 12, 18) and `width` 256.

    Example:
        >>> import torch
        >>> from udaseg.models import DAFormerHead
        >>> head = DAFormerHead((24, 320), (4, 16), num_classes=19, width=64)
        >>> tuple(head([torch.zeros(2, 24, 64, 64), torch.zeros(2, 320, 16, 16)]).shape)
        (2, 19, 64, 64)
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        dilations: Sequence[int] = (6, 12, 18),
        width: int = 256,
    ) -> None:
        super().__init__()
        self.enlarged = [stride != strides[0] for stride in strides]
        self.embed = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        together = width * len(channels)
        self.point = conv(together, width, 1)
        self.branches = nn.ModuleList(
            separable(together, width, dilation=dilation) for dilation in dilations
        )
        self.fuse = conv(width * (1 + len(dilations)), width, 3)
        self.drop = nn.Dropout2d(_DROPOUT)
        self.classify = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=_INIT_STD)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    @classmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe."""
        return cls(
            backbone.channels,
            backbone.strides,
            num_classes,
            spec.aspp_dilations,
            spec.head_channels,
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, h, w) on the grid of the first map."""
        size = maps[0].shape[-2:]
        embedded = torch.cat(
            [
                upsample(layer(each), size) if enlarged else layer(each)
                for layer, each, enlarged in zip(self.embed, maps, self.enlarged, strict=True)
            ],
            1,
        )
        branches = [self.point(embedded), *(branch(embedded) for branch in self.branches)]
        fused = self.drop(self.fuse(torch.cat(branches, 1)))
        logits: Tensor = self.classify(fused)
        return logits.float()


HEAD = DAFormerHead
