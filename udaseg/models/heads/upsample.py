"""The head of VFM-UDA: the last feature map, enlarged by convolutions."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.recipe.schema import Model

_INIT_STD = 0.1


class UpsampleHead(Head):
    """Two up-convolutions of the last feature map, each to twice its size.

    Args:
        channels: Channels of the feature maps, of which the last is used.
        num_classes: Number of outputs.
        width: Channels after the first up-convolution; after the second half of them.

    Reference:
        Englert et al., VFM-UDA (2024), and its code, where `width` is half the channels of the map.
        It has layer norms and no batch norm, so an image does not depend on the others of a batch.

    Example:
        >>> import torch
        >>> from udaseg.models import UpsampleHead
        >>> head = UpsampleHead(channels=(384,), num_classes=19, width=192)
        >>> tuple(head([torch.zeros(1, 384, 19, 25)]).shape)
        (1, 19, 76, 100)
    """

    levels = (-1,)

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 256) -> None:
        # slow to import
        from timm.layers.norm import LayerNorm2d

        super().__init__()
        half = max(1, width // 2)
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(channels[-1], width, 2, stride=2, bias=False),
            LayerNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, half, 2, stride=2, bias=False),
            LayerNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            LayerNorm2d(half),
        )
        self.classify = nn.Conv2d(half, num_classes, 1, bias=False)
        nn.init.normal_(self.classify.weight, std=_INIT_STD)

    @classmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe."""
        return cls(backbone.channels, num_classes, spec.head_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, 4h, 4w) for a last map of h x w cells."""
        logits: Tensor = self.classify(self.enlarge(maps[-1]))
        return logits.float()


HEAD = UpsampleHead
