"""The head of VFM-UDA++: from the coarsest feature map down to the finest."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from torch import Tensor, nn

from udaseg.errors import RecipeError
from udaseg.models.backbones.backbone import Backbone
from udaseg.models.heads.head import Head
from udaseg.models.heads.layers import conv, up_conv
from udaseg.recipe.schema import Model

_INIT_STD = 0.1


class PyramidHead(Head):
    """The last map, merged with the map before it, and so on to the first.

    A merge adds an up-convolution of what is merged so far and a convolution of the next map, and
    smooths the sum by a 3x3 convolution with batch norm and ReLU. Where all maps have one stride,
    as those of a plain ViT, up-convolutions enlarge the maps before the last two: of four, the
    second to twice, the first to four times its size.

    Args:
        channels: Channels of the feature maps, two or more, all of which are used.
        strides: Their strides, each a multiple of the one before.
        num_classes: Number of outputs.
        width: Channels of the first merge; each further one has half of those before it.

    Raises:
        RecipeError: There is one map only, or a stride is no multiple of the one before.

    Reference:
        Englert et al., VFM-UDA++ (2025), and its code, where `width` is half the channels of a map.
        Differs: maps come from the backbone itself, not from a ViT-Adapter beside it; the momentum
        of batch norms is 0.1, not 0.01, so that runs of some hundred steps have settled
        statistics; smoothing has no bias before a batch norm; layers but the last begin as torch's.

    Example:
        >>> import torch
        >>> from udaseg.models import PyramidHead
        >>> head = PyramidHead((96, 192, 384), (4, 8, 16), num_classes=19, width=64)
        >>> maps = [torch.zeros(1, 96, 33, 65), torch.zeros(1, 192, 17, 33)]
        >>> tuple(head([*maps, torch.zeros(1, 384, 9, 17)]).shape)
        (1, 19, 33, 65)
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int = 256
    ) -> None:
        super().__init__()
        if len(channels) < 2 or any(coarse % fine for fine, coarse in pairwise(strides)):
            raise RecipeError(
                "model.head: pyramid merges two or more feature maps, the stride of each a "
                f"multiple of the one before; those of this backbone are {list(strides)}. Take "
                "another head, such as upsample"
            )
        one_stride = strides[0] == strides[-1]
        self.ups, self.laterals, self.smooths = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs, before = channels[-1], float(strides[-1])
        for merge, level in enumerate(reversed(range(len(channels) - 1))):
            factor = min(4, 2**merge) if one_stride else 1
            outputs, stride = max(1, width >> merge), strides[level] / factor
            self.ups.append(up_conv(inputs, outputs, round(before / stride)))
            self.laterals.append(up_conv(channels[level], outputs, factor))
            self.smooths.append(conv(outputs, outputs, 3))
            inputs, before = outputs, stride
        self.last = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.classify = nn.Conv2d(inputs, num_classes, 1, bias=False)
        nn.init.normal_(self.classify.weight, std=_INIT_STD)

    @classmethod
    def from_spec(cls, spec: Model, backbone: Backbone, num_classes: int) -> Self:
        """Return the head of a recipe."""
        return cls(backbone.channels, backbone.strides, num_classes, spec.head_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return float32 logits (B, K, h, w) on the grid of the first map, or one 4 times finer."""
        merged, merges = maps[-1], zip(self.ups, self.laterals, self.smooths, strict=True)
        for (up, lateral, smooth), finer in zip(merges, reversed(maps[:-1]), strict=True):
            beside = lateral(finer)
            rows, columns = beside.shape[-2:]
            # the last cells of the coarser map may reach beyond the finer one
            merged = smooth(up(merged)[..., :rows, :columns] + beside)
        logits: Tensor = self.classify(self.last(merged))
        return logits.float()


HEAD = PyramidHead
